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

namespace omnisparse::cpu {

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
};

/// The scratch of one thread: where a tile's probabilities, sums and maxima live.
template <class A>
struct tile_scratch {
  // Row length of the probabilities: off a power of two, so that rows do not share cache sets.
  static constexpr int ld = tile_keys + strip<A>;
  A* scores = nullptr;  ///< [block_rows, ld]: of one block of rows, so that it stays in L1
  A* sums = nullptr;    ///< [tile_rows, padded_dim], not yet divided
  A* high = nullptr;    ///< [tile_rows], running maximum, log2 units
  A* total = nullptr;   ///< [tile_rows], running sum of 2^(score - high)

  template <class Arena>
  static tile_scratch take(Arena& arena, int dim) noexcept {
    auto const rows = static_cast<std::size_t>(tile_rows);
    tile_scratch s;
    s.scores = arena.template take<A>(std::size_t{block_rows} * ld);
    s.sums = arena.template take<A>(rows * static_cast<std::size_t>(padded_dim<A>(dim)));
    s.high = arena.template take<A>(rows);
    s.total = arena.template take<A>(rows);
    return s;
  }
};

/// Turns a row of scores [columns] into 2^(score - high) in place and updates the row's maximum and
/// sum. Returns the factor by which what was summed before shrinks.
template <class A>
inline A softmax_row(A* scores, int columns, A& high, A& total) noexcept {
  using P = packet<A>;
  P top = simd::pset1<P>(empty_lse<A>());
  for (int n = 0; n < columns; n += lanes<A>) top = simd::pmax(top, simd::ploadu<P>(scores + n));
  A const before = high;
  A const now = std::max(before, simd::predux_max(top));
  A const base = now == empty_lse<A>() ? A(0) : now;  // nothing seen yet: all become 0
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

/// Attends `rows` <= tile_rows rows, packed by pack_rows with score_scale, to the
/// runs. Leaves the state in `s`; `tile_lse` and `store_tile_row` read it.
template <class A>
void attend_tile(A const* q, int rows, int dim, key_run<A> const* runs, int run_count,
                 tile_scratch<A> const& s) noexcept {
  constexpr int ld = tile_scratch<A>::ld;
  int const width = padded_dim<A>(dim);
  int const padded_rows = round_up(rows, block_rows);
  std::fill_n(s.high, padded_rows, empty_lse<A>());
  std::fill_n(s.total, padded_rows, A(0));
  bool const wants_values = run_count > 0 && runs[0].values != nullptr;
  if (wants_values) std::fill_n(s.sums, std::ptrdiff_t{padded_rows} * width, A(0));

  for (key_run<A> const* run = runs; run != runs + run_count; ++run) {
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
        int const r1 = std::min(rows, r0 + block_rows);
        int low = base + tile_keys, high = base;
        for (int r = r0; r < r1; ++r) {
          if (run->begin[r] >= run->end[r]) continue;
          low = std::min(low, run->begin[r]);
          high = std::max(high, run->end[r]);
        }
        low = std::max(base, low) / lanes<A> * lanes<A>;
        high = std::min(high, base + tile_keys);
        if (low >= high) continue;
        int const columns = round_up(high - low, lanes<A>);
        A* const scores = s.scores;
        A const* const block = q + std::ptrdiff_t{r0} * dim;
        A const* const panels = run->panels + std::ptrdiff_t{low} * dim;
        int const pairs = columns / strip<A> * strip<A>;
        for (int c = 0; c < pairs; c += strip<A>) {
          multiply_keys(block, panels + std::ptrdiff_t{c} * dim, dim, scores + c, ld);
        }
        if (pairs < columns) {
          multiply_keys<1>(block, panels + std::ptrdiff_t{pairs} * dim, dim, scores + pairs, ld);
        }
        for (int r = r0; r < r1; ++r) {
          A* const row = scores + (r - r0) * ld;
          int const begin = std::clamp(run->begin[r] - low, 0, columns);
          int const end = std::clamp(run->end[r] - low, begin, columns);
          std::fill(row, row + begin, empty_lse<A>());
          std::fill(row + end, row + columns, empty_lse<A>());
          A const shrink = softmax_row(row, columns, s.high[r], s.total[r]);
          if (wants_values && shrink != A(1)) {
            A* const out = s.sums + std::ptrdiff_t{r} * width;
            for (int d = 0; d < width; ++d) out[d] *= shrink;
          }
          if (wants_values && !run->finite) {
            multiply_values_exactly(row, run->values + std::ptrdiff_t{low} * width, begin, end,
                                    s.sums + std::ptrdiff_t{r} * width, width);
          }
        }
        if (!wants_values || !run->finite) continue;
        for (int r = r1 - r0; r < block_rows; ++r) std::fill_n(scores + r * ld, columns, A(0));
        for (int d = 0; d < width; d += strip<A>) {
          multiply_values<A, ld>(scores, run->values + std::ptrdiff_t{low} * width + d, high - low,
                                 s.sums + std::ptrdiff_t{r0} * width + d, width);
        }
      }
    }
  }
}

/// The natural log-sum-exp of a row's maximum and sum in log2 units; -inf where it saw nothing.
template <class A>
A natural_lse(A high, A total) noexcept {
  return high == empty_lse<A>() ? high : ln_2<A> * (high + std::log2(total));
}

/// The natural log-sum-exp of row r after attend_tile; -inf where it saw nothing.
template <class A>
A tile_lse(tile_scratch<A> const& s, int r) noexcept {
  return natural_lse(s.high[r], s.total[r]);
}

/// Row r of the output after attend_tile, to out [dim]; 0 where it saw nothing.
template <class A, class T>
void store_tile_row(tile_scratch<A> const& s, int r, int dim, T* out) noexcept {
  A const* const sums = s.sums + std::ptrdiff_t{r} * padded_dim<A>(dim);
  A const scale = s.high[r] == empty_lse<A>() ? A(0) : A(1) / s.total[r];
  for (int d = 0; d < dim; ++d) out[d] = static_cast<T>(sums[d] * scale);
}

}  // namespace omnisparse::cpu
