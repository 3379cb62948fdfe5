/// @file
/// Probe rows: what a few rows of a chunk tell of the worth of its keys.
#pragma once

#include <omnisparse/backend/cpu/attend.hpp>

namespace omnisparse::cpu {

/// What the probe rows of one (batch, chunk) tell, for each KV head.
template <class A>
struct probe_memory {
  A* mass = nullptr;                ///< [kv_heads, keys]
  A* peak = nullptr;                ///< [kv_heads, keys]
  int* seen = nullptr;              ///< [kv_heads, keys], (row, head) pairs that see the key as far
  std::uint64_t* rank = nullptr;    ///< [kv_heads, keys], candidates by score, see select.hpp
  int* rows = nullptr;              ///< [chunk rows], the probes
  A* lse = nullptr;                 ///< [kv_heads, chunk rows * group], log2 units
  int* reach = nullptr;             ///< [kv_heads]
  double* held = nullptr;           ///< [kv_heads], mass of near field and text
  double* concentration = nullptr;  ///< [kv_heads]
  int keys = 0;                     ///< padded

  template <class Arena>
  static probe_memory take(Arena& arena, attention_shape const& shape, int chunk_rows) noexcept {
    auto const heads = static_cast<std::size_t>(shape.kv_heads);
    probe_memory p;
    p.keys = round_up(larger(1, shape.kv_tokens), tile_keys);
    std::size_t const n = heads * static_cast<std::size_t>(p.keys);
    p.mass = arena.template take<A>(n);
    p.peak = arena.template take<A>(n);
    p.seen = arena.template take<int>(n);
    p.rank = arena.template take<std::uint64_t>(n);
    p.rows = arena.template take<int>(static_cast<std::size_t>(chunk_rows));
    p.lse = arena.template take<A>(heads * static_cast<std::size_t>(chunk_rows) *
                                   static_cast<std::size_t>(shape.group()));
    p.reach = arena.template take<int>(heads);
    p.held = arena.template take<double>(heads);
    p.concentration = arena.template take<double>(heads);
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

/// Probes rows [first, first + rows) of sequence b: fills mass, peak and seen of every KV head.
/// Returns the probe (row, head) pairs of one KV head that see anything: their total mass.
/// Two passes over the keys: the rows' log-sum-exps, then column sums, each key by one thread in
/// row order, so that bits do not depend on threads.
template <class T, class Scorer>
int probe_chunk(attention_call<T, host> const& call, Scorer const& scorer, near_field const& near,
                mask limit, int b, sequence_extent extent, int first, int rows,
                attend_memory<accumulator_t<T>> const& m,
                probe_memory<accumulator_t<T>> const& p) noexcept {
  using A = accumulator_t<T>;
  attention_shape const& shape = call.shape;
  int const group = shape.group();
  int probes = 0;
  for (int i = 0; i < rows; ++i) {
    int const position = extent.position(first + i);
    if (near_field::visible(position, extent.kv_tokens, limit).end > 0 && scorer.probes(i, rows)) {
      p.rows[probes++] = first + i;
    }
  }
  int const pairs = probes * group;
  int const tiles = ceil_div(pairs, tile_rows);
  auto const row_of = [&](int pair) { return p.rows[pair / group]; };
  auto const pack = [&](int g, int at, int count, A* q) {
    pack_rows<A>([&](int r) { return call.q.at(b, g * group + (at + r) % group, row_of(at + r)); },
                 count, shape.dim, score_scale<A>(shape.dim), q);
  };
  auto const slot_of = [&](int g) { return std::ptrdiff_t{b} * shape.kv_heads + g; };
  auto const lse_of = [&](int g, int pair) -> A& {
    return p.lse[std::ptrdiff_t{g} * pairs + pair];
  };

  parallel_for(m.threads, static_cast<long long>(shape.kv_heads) * tiles, [&](long long n, int t) {
    int const g = static_cast<int>(n / tiles), at = static_cast<int>(n % tiles) * tile_rows;
    int const count = std::min(tile_rows, pairs - at);
    auto const s = m.scratch_of(t, shape.dim);
    pack(g, at, count, s.q);
    for (int r = 0; r < count; ++r) {
      s.begin(0)[r] = 0;
      s.end(0)[r] =
          near_field::visible(extent.position(row_of(at + r)), extent.kv_tokens, limit).end;
    }
    key_run<A> const run{m.kv.panels_at(slot_of(g)), nullptr, s.begin(0), s.end(0), true};
    attend_tile(s.q, count, shape.dim, &run, 1, s.tile);
    for (int r = 0; r < count; ++r) lse_of(g, at + r) = tile_lse(s.tile, r) * log2_e<A>;
  });

  int const steps = p.keys / tile_keys;
  parallel_for(m.threads, static_cast<long long>(shape.kv_heads) * steps, [&](long long n, int t) {
    using P = packet<A>;
    constexpr int ld = tile_scratch<A>::ld;
    int const g = static_cast<int>(n / steps), base = static_cast<int>(n % steps) * tile_keys;
    std::ptrdiff_t const out = std::ptrdiff_t{g} * p.keys + base;
    std::fill_n(p.mass + out, tile_keys, A(0));
    std::fill_n(p.peak + out, tile_keys, A(0));
    std::fill_n(p.seen + out, tile_keys, 0);
    int const columns = std::min(tile_keys, m.kv.slot_keys - base);
    if (columns <= 0 || base >= extent.kv_tokens) return;
    auto const s = m.scratch_of(t, shape.dim);
    for (int at = 0; at < pairs; at += tile_rows) {
      int const count = std::min(tile_rows, pairs - at);
      pack(g, at, count, s.q);
      for (int r0 = 0; r0 < count; r0 += block_rows) {
        A* const scores = s.tile.scores;
        for (int c = 0; c < columns; c += strip<A>) {
          multiply_keys(s.q + std::ptrdiff_t{r0} * shape.dim, m.kv.panels_at(slot_of(g), base + c),
                        shape.dim, scores + c, ld);
        }
        for (int r = r0; r < std::min(count, r0 + block_rows); ++r) {
          A* const row = scores + (r - r0) * ld;
          far_ranges const far =
              far_of(near, extent.position(row_of(at + r)), extent.kv_tokens, limit);
          int const cuts[5] = {0, far.left.begin, far.left.end, far.right.begin, far.right.end};
          int edges[5];
          for (int e = 0; e < 5; ++e) edges[e] = std::clamp(cuts[e] - base, 0, columns);
          std::fill(row, row + edges[1], empty_lse<A>());
          std::fill(row + edges[2], row + std::max(edges[2], edges[3]), empty_lse<A>());
          std::fill(row + std::max(edges[2], edges[4]), row + columns, empty_lse<A>());
          for (int c = edges[1]; c < edges[2]; ++c) ++p.seen[out + c];
          for (int c = std::max(edges[2], edges[3]); c < edges[4]; ++c) ++p.seen[out + c];
          P const shift = simd::pset1<P>(lse_of(g, at + r));
          for (int c = 0; c < columns; c += lanes<A>) {
            P const share = exp2_of<A>(simd::psub(simd::ploadu<P>(row + c), shift));
            A* const mass = p.mass + out + c;
            A* const peak = p.peak + out + c;
            simd::pstoreu(mass, simd::padd(simd::ploadu<P>(mass), share));
            simd::pstoreu(peak, simd::pmax(simd::ploadu<P>(peak), share));
          }
        }
      }
    }
  });
  return pairs;
}

}  // namespace omnisparse::cpu
