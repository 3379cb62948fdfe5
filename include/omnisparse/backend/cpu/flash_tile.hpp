/// @file
/// One row tile attends to runs of keys, under one online softmax: dense rows, windows, sinks, kept
/// lists and rescued rows are all runs with a begin and an end for each row.
#pragma once

#include <omnisparse/backend/cpu/pack.hpp>
#include <omnisparse/backend/cpu/packet.hpp>
#include <omnisparse/backend/cpu/product.hpp>
#include <omnisparse/core/merge.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

/// Rows of a tile and keys of a step. A step's keys, values and probabilities fit the L2 cache.
inline constexpr int tile_rows = 96;
inline constexpr int tile_keys = 512;
static_assert(tile_rows % block_rows == 0);

/// Keys that a tile attends to: row r sees [begin[r], end[r]). `values` [keys, padded_dim] may be
/// null where only the log-sum-exp is wanted.
template <class A>
struct key_run {
  A const* panels = nullptr;  ///< whole panels [dim][lanes]
  A const* values = nullptr;
  int const* begin = nullptr;  ///< [rows]
  int const* end = nullptr;    ///< [rows]
  bool finite = true;          ///< all values are finite
  bool tame = true;            ///< no product of a row and a key can leave the range of A
};

/// Rows of a block in whole packets: the stride of what is kept for each row.
template <class A>
inline constexpr int block_lanes = round_up(block_rows, lanes<A>);

/// The scratch of one thread: where a tile's probabilities, sums and maxima live.
template <class A>
struct tile_scratch {
  // Row length of the probabilities: off a power of two, so that rows do not share cache sets.
  static constexpr int ld = tile_keys + strip<A>;
  A* scores = nullptr;  ///< [block_rows, ld]: of one block of rows, so that it stays in L1
  A* sums = nullptr;    ///< [tile_rows, padded_dim], not yet divided
  A* high = nullptr;    ///< [slots], running maximum, log2 units
  A* total = nullptr;   ///< [slots], running sum of 2^(score - high); -1 where a row was finished
                        ///<  exactly: `sums` then hold its output and `high` its lse in nats

  /// Where row r stands in high and total.
  static constexpr int slot(int r) noexcept {
    return r / block_rows * block_lanes<A> + r % block_rows;
  }
  static constexpr int slots = tile_rows / block_rows * block_lanes<A>;

  template <class Arena>
  static tile_scratch take(Arena& arena, int dim) noexcept {
    auto const rows = static_cast<std::size_t>(tile_rows);
    tile_scratch s;
    s.scores = arena.template take<A>(std::size_t{block_rows} * ld);
    s.sums = arena.template take<A>(rows * static_cast<std::size_t>(padded_dim<A>(dim)));
    s.high = arena.template take<A>(static_cast<std::size_t>(slots));
    s.total = arena.template take<A>(static_cast<std::size_t>(slots));
    return s;
  }
};

/// The packet of op over the lanes of each of `lanes` packets: lane n is that of packet n.
template <class A, class Op>
inline packet<A> reduce_packets(packet_block<A>& block, Op op) noexcept {
  if constexpr (lanes<A> > 1) simd::ptranspose(block);
  for (int half = lanes<A> / 2; half > 0; half /= 2) {
    for (int n = 0; n < half; ++n) block.packet[n] = op(block.packet[n], block.packet[n + half]);
  }
  return block.packet[0];
}

/// One step of the online softmax of a block of rows: turns scores [rows, ld], `columns` of each,
/// into 2^(score - high), in place where `keep` says so, and updates `high` and `total`
/// [block_lanes]. `shrink` [block_lanes] becomes the factor of what each row summed before.
template <bool keep, class A>
inline void softmax_block(A* scores, int ld, int rows, int columns, A* high, A* total,
                          A* shrink) noexcept {
  using P = packet<A>;
  constexpr int width = lanes<A>;
  auto const larger_of = [](P x, P y) { return simd::pmax(x, y); };
  auto const sum_of = [](P x, P y) { return simd::padd(x, y); };
  packet_block<A> part;
  for (int first = 0; first < rows; first += width) {
    int const some = smaller(width, rows - first);
    A* const block = scores + std::ptrdiff_t{first} * ld;
    for (int n = 0; n < width; ++n) {
      P top = simd::pset1<P>(empty_lse<A>());
      if (n < some) {
        A const* const row = block + std::ptrdiff_t{n} * ld;
        for (int c = 0; c < columns; c += width) top = simd::pmax(top, simd::ploadu<P>(row + c));
      }
      part.packet[n] = top;
    }
    P const before = simd::ploadu<P>(high + first);
    P const now = simd::pmax(before, reduce_packets<A>(part, larger_of));
    // Nothing seen yet: a finite base, so that everything becomes 0.
    P const base = simd::pmax(now, simd::pset1<P>(std::numeric_limits<A>::lowest()));
    P const factor = exp2_of<A>(simd::psub(before, base));
    A bases[std::size_t{width}];
    simd::pstoreu(bases, base);
    for (int n = 0; n < width; ++n) {
      P sum = simd::pset1<P>(A(0));
      if (n < some) {
        P const shift = simd::pset1<P>(bases[n]);
        A* const row = block + std::ptrdiff_t{n} * ld;
        for (int c = 0; c < columns; c += width) {
          P const p = exp2_of<A>(simd::psub(simd::ploadu<P>(row + c), shift));
          if constexpr (keep) simd::pstoreu(row + c, p);
          sum = simd::padd(sum, p);
        }
      }
      part.packet[n] = sum;
    }
    simd::pstoreu(high + first, now);
    simd::pstoreu(total + first, simd::pmadd(simd::ploadu<P>(total + first), factor,
                                             reduce_packets<A>(part, sum_of)));
    simd::pstoreu(shrink + first, factor);
  }
}

/// Turns a row of scores [columns] into 2^(score - high) in place and updates the row's maximum and
/// sum. Returns the factor by which what was summed before shrinks.
template <class A>
inline A softmax_row(A* scores, int columns, A& high, A& total) noexcept {
  using P = packet<A>;
  P top = simd::pset1<P>(empty_lse<A>());
  for (int n = 0; n < columns; n += lanes<A>) top = simd::pmax(top, simd::ploadu<P>(scores + n));
  A const before = high;
  A const now = std::max(before, simd::predux_max(top));
  A const base = is_empty(now) ? A(0) : now;  // nothing seen yet: all become 0
  P const shift = simd::pset1<P>(base);
  P sum = simd::pset1<P>(A(0));
  for (int n = 0; n < columns; n += lanes<A>) {
    P const p = exp2_of<A>(simd::psub(simd::ploadu<P>(scores + n), shift));
    simd::pstoreu(scores + n, p);
    sum = simd::padd(sum, p);
  }
  A const shrink = before == now ? A(1) : std::exp2(before - base);
  high = now;
  total = total * shrink + simd::predux(sum);
  return shrink;
}

/// One row of O += P v over exactly the keys [begin, end): for values that are not all finite,
/// where 0 times a value that the row does not see would be NaN.
template <class A>
inline void multiply_values_exactly(A const* p, A const* v, int begin, int end, A* out,
                                    int width) noexcept {
  for (int n = begin; n < end; ++n) {
    for (int d = 0; d < width; ++d) out[d] += p[n] * v[static_cast<std::ptrdiff_t>(n) * width + d];
  }
}

/// The products of a block of rows with `columns` keys, whole panels, to scores [block_rows, ld].
template <class A>
inline void multiply_columns(A const* block, A const* panels, int dim, int columns, A* scores,
                             int ld) noexcept {
  int const pairs = columns / strip<A> * strip<A>;
  for (int c = 0; c < pairs; c += strip<A>) {
    multiply_keys(block, panels + std::ptrdiff_t{c} * dim, dim, scores + c, ld);
  }
  if (pairs < columns) {
    multiply_keys<1>(block, panels + std::ptrdiff_t{pairs} * dim, dim, scores + pairs, ld);
  }
}

/// The sum of a row of which a score left the range of A: it stays NaN, so the row is finished
/// exactly.
template <class A>
A lost() noexcept {
  return detail::not_a_number<A>();
}

/// The state of rows that have seen nothing.
template <class A>
void clear_tile(tile_scratch<A> const& s, int rows, int dim, bool with_values) noexcept {
  std::fill_n(s.high, tile_scratch<A>::slots, empty_lse<A>());
  std::fill_n(s.total, tile_scratch<A>::slots, A(0));
  if (with_values) {
    std::fill_n(s.sums, std::ptrdiff_t{round_up(rows, block_rows)} * padded_dim<A>(dim), A(0));
  }
}

/// Attends `rows` <= tile_rows rows, packed by pack_rows with score_scale, to the runs, going on
/// from the state in `s`, which `tile_lse` and `store_tile_row` read. All runs have values or none.
template <class A>
void attend_runs(A const* q, int rows, int dim, key_run<A> const* runs, int run_count,
                 tile_scratch<A> const& s) noexcept {
  constexpr int ld = tile_scratch<A>::ld;
  int const width = padded_dim<A>(dim);
  for (key_run<A> const* run = runs; run != runs + run_count; ++run) {
    bool const with_values = run->values != nullptr;
    int first = std::numeric_limits<int>::max();
    int last = 0;
    for (int r = 0; r < rows; ++r) {
      if (run->begin[r] >= run->end[r]) continue;
      first = std::min(first, run->begin[r]);
      last = std::max(last, run->end[r]);
    }
    // Steps start at multiples of tile_keys, so a row's bits do not depend on the rows beside it.
    first = first / tile_keys * tile_keys;
    for (int base = first; base < last; base += tile_keys) {
      for (int r0 = 0; r0 < rows; r0 += block_rows) {
        // The columns that any row of the block sees, in whole panels.
        int const some = std::min(block_rows, rows - r0);
        int low = base + tile_keys, high = base;
        for (int r = r0; r < r0 + some; ++r) {
          if (run->begin[r] >= run->end[r]) continue;
          low = std::min(low, run->begin[r]);
          high = std::max(high, run->end[r]);
        }
        low = std::max(base, low) / lanes<A> * lanes<A>;
        high = std::min(high, base + tile_keys);
        if (low >= high) continue;
        int const columns = round_up(high - low, lanes<A>);
        A* const scores = s.scores;
        multiply_columns(q + std::ptrdiff_t{r0} * dim, run->panels + std::ptrdiff_t{low} * dim, dim,
                         columns, scores, ld);
        for (int r = 0; r < some; ++r) {
          A* const row = scores + r * ld;
          int const begin = std::clamp(run->begin[r0 + r] - low, 0, columns);
          int const end = std::clamp(run->end[r0 + r] - low, begin, columns);
          std::fill(row, row + begin, empty_lse<A>());
          std::fill(row + end, row + columns, empty_lse<A>());
        }
        A shrink[block_lanes<A>];
        int const slot = tile_scratch<A>::slot(r0);
        for (int r = 0; r < some && !run->tame; ++r) {
          int const begin = std::clamp(run->begin[r0 + r] - low, 0, columns);
          int const end = std::clamp(run->end[r0 + r] - low, begin, columns);
          if (!all_finite(scores + r * ld + begin, end - begin)) s.total[slot + r] = lost<A>();
        }
        if (!with_values) {
          softmax_block<false>(scores, ld, some, columns, s.high + slot, s.total + slot, shrink);
          continue;
        }
        softmax_block<true>(scores, ld, some, columns, s.high + slot, s.total + slot, shrink);
        A const* const values = run->values + std::ptrdiff_t{low} * width;
        for (int r = 0; r < some; ++r) {
          A* const out = s.sums + std::ptrdiff_t{r0 + r} * width;
          if (shrink[r] != A(1)) {
            for (int d = 0; d < width; ++d) out[d] *= shrink[r];
          }
          if (!run->finite) {
            int const begin = std::clamp(run->begin[r0 + r] - low, 0, columns);
            int const end = std::clamp(run->end[r0 + r] - low, begin, columns);
            multiply_values_exactly(scores + r * ld, values, begin, end, out, width);
          }
        }
        if (!run->finite) continue;
        for (int d = 0; d < width; d += strip<A>) {
          multiply_values<A, ld>(scores, values + d, high - low,
                                 s.sums + std::ptrdiff_t{r0} * width + d, width);
        }
      }
    }
  }
}

/// The same from the start: the state becomes that of the runs alone.
template <class A>
void attend_tile(A const* q, int rows, int dim, key_run<A> const* runs, int run_count,
                 tile_scratch<A> const& s) noexcept {
  clear_tile(s, rows, dim, run_count > 0 && runs[0].values != nullptr);
  attend_runs(q, rows, dim, runs, run_count, s);
}

/// The natural log-sum-exp of a row's maximum and sum in log2 units; -inf where it saw nothing, NaN
/// where all that it saw gave none.
template <class A>
A natural_lse(A high, A total) noexcept {
  if (is_nan(total)) return total;
  return is_empty(high) ? high : ln_2<A> * (high + std::log2(total));
}

/// Has the row seen nothing, or is all that it summed up within the range of A? Where not, what a
/// finished row gives may be an artefact of this range.
template <class A>
bool is_sound(tile_scratch<A> const& s, int r, int dim) noexcept {
  int const at = tile_scratch<A>::slot(r);
  if (!is_finite(s.total[at])) return false;
  if (is_empty(s.high[at])) return true;
  return is_finite(s.high[at]) && all_finite(s.sums + std::ptrdiff_t{r} * padded_dim<A>(dim), dim);
}

/// The natural log-sum-exp of row r after attend_tile; -inf where it saw nothing.
template <class A>
A tile_lse(tile_scratch<A> const& s, int r) noexcept {
  int const at = tile_scratch<A>::slot(r);
  return s.total[at] < A(0) ? s.high[at] : natural_lse(s.high[at], s.total[at]);
}

/// Row r of the output after attend_tile, to out [dim]; 0 where it saw nothing.
template <class A, class T>
void store_tile_row(tile_scratch<A> const& s, int r, int dim, T* out) noexcept {
  A const* const sums = s.sums + std::ptrdiff_t{r} * padded_dim<A>(dim);
  int const at = tile_scratch<A>::slot(r);
  A const scale = s.total[at] < A(0) ? A(1) : is_empty(s.high[at]) ? A(0) : A(1) / s.total[at];
  for (int d = 0; d < dim; ++d) out[d] = static_cast<T>(sums[d] * scale);
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
