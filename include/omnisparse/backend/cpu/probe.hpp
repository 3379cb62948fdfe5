/// @file
/// Probe rows: what a few rows of a chunk tell of the worth of its keys.
#pragma once

#include <omnisparse/backend/cpu/attend.hpp>

#include <cstdint>
#include <initializer_list>

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

/// A chunk whose probes run: its rows, and which keys they may keep.
struct probed_chunk {
  int first = 0;     ///< row of the call
  int rows = 0;      ///< 0: the chunk has no rows in this sequence
  int probes = 0;    ///< rows that are probes and see anything
  int parts = 0;     ///< that their (row, head) pairs are cut into
  int texts = 0;     ///< text keys among the candidates
  int flattest = 0;  ///< KV head
  far_candidates far;
};

/// What the probe rows of a wave of chunks of one sequence tell, for each (chunk, KV head): a list.
/// Memory: about 150 bytes a key and KV head, and at most 6 MiB a thread up to 128K tokens.
template <class A>
struct probe_memory {
  static constexpr int wave = 4;        // chunks at a time, so that all threads find work
  static constexpr int most_parts = 4;  // of a list's probes, each summed up apart
  static constexpr int ideal_pairs =
      4 * block_rows;               // of a tile; fewer where scores leave the cache
  A* mass = nullptr;                ///< [lists, most_parts, keys]; part 0 becomes the sum of all
  A* peak = nullptr;                ///< [lists, most_parts, keys]; part 0 becomes the largest
  int* seen = nullptr;              ///< [wave, keys + 1], (row, head) pairs that see the key as far
  std::uint64_t* rank = nullptr;    ///< [lists, keys], candidates by score, see select.hpp
  int* rows = nullptr;              ///< [wave, chunk rows], the probes
  int* reach = nullptr;             ///< [lists]
  double* held = nullptr;           ///< [lists], mass of near field and text
  double* concentration = nullptr;  ///< [lists]
  A* scores = nullptr;              ///< [threads, tile_pairs, ld], exponentials of a tile's scores
  A* highs = nullptr;               ///< [threads, steps, slots], the maxima they stand against
  probed_chunk chunks[wave];
  int keys = 0;        ///< padded
  int tile_pairs = 0;  ///< probe (row, head) pairs of a tile
  int chunk_rows = 0;

  /// Scores of a row, off a power of two.
  int ld() const noexcept { return keys + strip<A>; }
  int steps() const noexcept { return keys / tile_keys; }
  A* mass_at(std::ptrdiff_t list, int part = 0) const noexcept {
    return mass + (list * most_parts + part) * keys;
  }
  A* peak_at(std::ptrdiff_t list, int part = 0) const noexcept {
    return peak + (list * most_parts + part) * keys;
  }
  int* seen_at(int chunk) const noexcept { return seen + std::ptrdiff_t{chunk} * (keys + 1); }
  int* rows_at(int chunk) const noexcept { return rows + std::ptrdiff_t{chunk} * chunk_rows; }

  template <class Arena>
  static probe_memory take(Arena& arena, attention_shape const& shape, int chunk_rows,
                           int threads) noexcept {
    auto const count = [](int n) { return static_cast<std::size_t>(n); };
    probe_memory p;
    p.chunk_rows = chunk_rows;
    p.keys = round_up(larger(1, shape.kv_tokens), tile_keys);
    p.tile_pairs = clamped((1 << 20) / p.keys / block_rows * block_rows, block_rows, ideal_pairs);
    std::size_t const chunks =
        count(smaller(wave, ceil_div(larger(1, shape.q_tokens), chunk_rows)));
    std::size_t const lists = chunks * count(shape.kv_heads);
    std::size_t const n = lists * count(p.keys);
    p.mass = arena.template take<A>(n * most_parts);
    p.peak = arena.template take<A>(n * most_parts);
    p.seen = arena.template take<int>(chunks * count(p.keys + 1));
    p.rank = arena.template take<std::uint64_t>(n);
    p.rows = arena.template take<int>(chunks * count(chunk_rows));
    p.reach = arena.template take<int>(lists);
    p.held = arena.template take<double>(lists);
    p.concentration = arena.template take<double>(lists);
    p.scores = arena.template take<A>(count(threads) * count(p.tile_pairs) * count(p.ld()));
    p.highs = arena.template take<A>(count(threads) * count(p.steps() * tile_scratch<A>::slots));
    return p;
  }
};

/// The keys that a row sees beyond its near field: before its window, and behind it.
struct far_ranges {
  key_range left, right;
};

inline far_ranges far_of(near_field const& near, int position, int kv_tokens, mask limit) noexcept {
  key_range const window = near.window_of(position, kv_tokens, limit);
  key_range const all = near_field::visible(position, kv_tokens, limit);
  return {{std::min(near.sinks, window.begin), window.begin}, {window.end, all.end}};
}

/// mass += weight e and peak = max(peak, weight e) over `rows` rows of exponentials, `columns`
/// each.
template <class A>
inline void add_shares(A const* scores, int ld, int rows, int columns, A const* weights, A* mass,
                       A* peak) noexcept {
  using P = packet<A>;
  for (int c = 0; c < columns; c += lanes<A>) {
    P sum = simd::ploadu<P>(mass + c), top = simd::ploadu<P>(peak + c);
    for (int r = 0; r < rows; ++r) {
      P const share = simd::pmul(simd::ploadu<P>(scores + std::ptrdiff_t{r} * ld + c),
                                 simd::pset1<P>(weights[r]));
      sum = simd::padd(sum, share);
      top = simd::pmax(top, share);
    }
    simd::pstoreu(mass + c, sum);
    simd::pstoreu(peak + c, top);
  }
}

/// One tile of `count` probe (row, head) pairs of KV head g: adds their shares to mass and peak.
/// The scores are multiplied out once: their exponentials wait, in cache, for the row's sum.
template <class T, class PositionOf, class At>
void probe_tile(attention_call<T, host> const& call, near_field const& near, mask limit,
                int kv_tokens, int count, PositionOf const& position_of, At const& row_at,
                accumulator_t<T> const* panels, thread_scratch<accumulator_t<T>> const& s,
                probe_memory<accumulator_t<T>> const& p, int thread, accumulator_t<T>* mass,
                accumulator_t<T>* peak) noexcept {
  using A = accumulator_t<T>;
  using S = tile_scratch<A>;
  int const dim = call.shape.dim, ld = p.ld();
  A* const scores = p.scores + std::ptrdiff_t{thread} * p.tile_pairs * ld;
  A* const highs = p.highs + std::ptrdiff_t{thread} * p.steps() * S::slots;
  pack_rows<A>(row_at, count, dim, score_scale<A>(call.scale, dim), s.q);
  clear_tile(s.tile, count, dim, false);
  int ends[tile_rows], last = 0;
  for (int r = 0; r < count; ++r) {
    ends[r] = near_field::visible(position_of(r), kv_tokens, limit).end;
    last = std::max(last, ends[r]);
  }
  // Rows ascend by position, so the last row of a block sees most.
  auto const columns_of = [&](int r0, int base) {
    int const end = ends[std::min(count, r0 + block_rows) - 1];
    return clamped(round_up(end, lanes<A>) - base, 0, tile_keys);
  };
  A shrink[block_lanes<A>];
  for (int base = 0; base < last; base += tile_keys) {
    for (int r0 = 0; r0 < count; r0 += block_rows) {
      int const columns = columns_of(r0, base), some = std::min(block_rows, count - r0);
      A* const block = scores + std::ptrdiff_t{r0} * ld + base;
      int const slot = S::slot(r0);
      if (columns > 0) {
        multiply_columns(s.q + std::ptrdiff_t{r0} * dim, panels + std::ptrdiff_t{base} * dim, dim,
                         columns, block, ld);
        for (int r = 0; r < some; ++r) {
          A* const row = block + std::ptrdiff_t{r} * ld;
          std::fill(row + clamped(ends[r0 + r] - base, 0, columns), row + columns, empty_lse<A>());
          if (hides_nan(row, columns)) s.tile.total[slot + r] = lost<A>();
        }
        softmax_block<true>(block, ld, some, columns, s.tile.high + slot, s.tile.total + slot,
                            shrink);
      }
      std::copy_n(s.tile.high + slot, block_lanes<A>, highs + base / tile_keys * S::slots + slot);
    }
  }
  using P = packet<A>;
  for (int r0 = 0; r0 < count; r0 += block_rows) {
    int const some = std::min(block_rows, count - r0), slot = S::slot(r0);
    A* const block = scores + std::ptrdiff_t{r0} * ld;
    unsigned mute = 0;                // rows whose probabilities are NaN tell nothing
    for (int r = 0; r < some; ++r) {  // what is near to a row is no share of a key
      A* const row = block + std::ptrdiff_t{r} * ld;
      A const total = s.tile.total[slot + r];
      if (!is_finite(total) || !(total > A(0))) {
        std::fill_n(row, round_up(ends[r0 + some - 1], lanes<A>), A(0));
        mute |= 1u << r;
        continue;
      }
      far_ranges const far = far_of(near, position_of(r0 + r), kv_tokens, limit);
      std::fill(row, row + far.left.begin, A(0));
      std::fill(row + far.left.end, row + far.right.begin, A(0));
    }
    for (int base = 0; columns_of(r0, base) > 0; base += tile_keys) {
      A weights[block_lanes<A>];
      for (int n = 0; n < block_lanes<A>; n += lanes<A>) {
        P const high = simd::ploadu<P>(s.tile.high + slot + n);
        P const then = simd::ploadu<P>(highs + base / tile_keys * S::slots + slot + n);
        P const total = simd::ploadu<P>(s.tile.total + slot + n);
        simd::pstoreu(weights + n, simd::pdiv(exp2_of<A>(simd::psub(then, high)), total));
      }
      for (int r = 0; r < some && mute != 0; ++r) {
        if ((mute >> r & 1u) != 0) weights[r] = A(0);
      }
      add_shares(block + base, ld, some, columns_of(r0, base), weights, mass + base, peak + base);
    }
  }
}

/// Runs the probes of `count` chunks of sequence b, described in p.chunks: fills mass, peak and
/// seen of every list. A list's probes are cut into parts by their number alone and the parts added
/// in order, so that bits do not depend on threads.
template <class T, class Scorer>
void probe_chunks(attention_call<T, host> const& call, Scorer const& scorer, near_field const& near,
                  mask limit, int b, sequence_extent extent, int count,
                  attend_memory<accumulator_t<T>> const& m,
                  probe_memory<accumulator_t<T>>& p) noexcept {
  using A = accumulator_t<T>;
  attention_shape const& shape = call.shape;
  int const group = shape.group(), heads = shape.kv_heads;
  parallel_for(m.threads, count, [&](long long at, int) {
    int const chunk = static_cast<int>(at);
    probed_chunk& c = p.chunks[chunk];
    int* const seen = p.seen_at(chunk);
    std::fill_n(seen, p.keys + 1, 0);
    c.probes = 0;
    for (int i = 0; i < c.rows; ++i) {
      int const position = extent.position(c.first + i);
      if (near_field::visible(position, extent.kv_tokens, limit).end == 0) continue;
      if (!scorer.probes(i, c.rows)) continue;
      p.rows_at(chunk)[c.probes++] = c.first + i;
      far_ranges const far = far_of(near, position, extent.kv_tokens, limit);
      for (key_range const& range : {far.left, far.right}) {
        if (range.size() == 0) continue;
        seen[range.begin] += group;
        seen[range.end] -= group;
      }
    }
    for (int j = 0; j < p.keys; ++j) seen[j + 1] += seen[j];
    c.parts = clamped(ceil_div(c.probes * group, p.tile_pairs), 1, p.most_parts);
  });
  parallel_for(m.threads, std::int64_t{count} * heads * p.most_parts, [&](long long n, int thread) {
    // The last chunk first: it sees most.
    int const part = static_cast<int>(n % p.most_parts);
    int const g = static_cast<int>(n / p.most_parts % heads);
    int const chunk = count - 1 - static_cast<int>(n / p.most_parts / heads);
    int const parts = p.chunks[chunk].parts;
    if (part >= parts) return;
    int const pairs = p.chunks[chunk].probes * group, tiles = ceil_div(pairs, p.tile_pairs);
    std::ptrdiff_t const list = std::ptrdiff_t{chunk} * heads + g;
    std::fill_n(p.mass_at(list, part), p.keys, A(0));
    std::fill_n(p.peak_at(list, part), p.keys, A(0));
    int const* const rows = p.rows_at(chunk);
    auto const s = m.scratch_of(thread, shape.dim);
    auto const first_of = [&](std::int64_t x) { return static_cast<int>(x * tiles / parts); };
    for (int tile = first_of(part); tile < first_of(part + 1); ++tile) {
      int const at = tile * p.tile_pairs;
      probe_tile(
          call, near, limit, extent.kv_tokens, std::min(p.tile_pairs, pairs - at),
          [&](int r) { return extent.position(rows[(at + r) / group]); },
          [&](int r) { return call.q.at(b, g * group + (at + r) % group, rows[(at + r) / group]); },
          m.kv.panels_at(std::ptrdiff_t{b} * heads + g), s, p, thread, p.mass_at(list, part),
          p.peak_at(list, part));
    }
  });
}

/// Adds up the parts of a list for its keys [0, keys): part 0 holds the whole afterwards.
template <class A>
void join_parts(probe_memory<A> const& p, std::ptrdiff_t list, int parts, int keys) noexcept {
  using P = packet<A>;
  A* const mass = p.mass_at(list);
  A* const peak = p.peak_at(list);
  for (int part = 1; part < parts; ++part) {
    A const* const more = p.mass_at(list, part);
    A const* const other = p.peak_at(list, part);
    for (int j = 0; j < keys; j += lanes<A>) {
      simd::pstoreu(mass + j, simd::padd(simd::ploadu<P>(mass + j), simd::ploadu<P>(more + j)));
      simd::pstoreu(peak + j, simd::pmax(simd::ploadu<P>(peak + j), simd::ploadu<P>(other + j)));
    }
  }
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
