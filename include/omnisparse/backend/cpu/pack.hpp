/// @file
/// Copies of q, k and v in the layouts that the products read, widened to the accumulator type.
#pragma once

#include <omnisparse/backend/cpu/packet.hpp>
#include <omnisparse/core/dtype.hpp>
#include <omnisparse/core/math.hpp>

#include <cstddef>
#include <cstdint>

namespace omnisparse::cpu {

/// Columns of a packed value row: dim rounded up to whole strips, the rest zero.
template <class A>
constexpr int padded_dim(int dim) noexcept {
  return round_up(dim, strip<A>);
}

/// Keys rounded up to whole panels.
template <class A>
constexpr int padded_keys(int keys) noexcept {
  return round_up(keys, strip<A>);
}

/// Packs `count` <= strip keys into one panel [dim][strip]: key n is row `at(n)` [dim]. Columns
/// beyond count are zero.
template <class A, class At>
void pack_panel(At at, int count, int dim, A* panel) noexcept {
  constexpr int width = strip<A>;
  for (int n = 0; n < count; ++n) {
    auto const* const row = at(n);
    for (int d = 0; d < dim; ++d) panel[d * width + n] = static_cast<A>(row[d]);
  }
  for (int d = 0; d < dim; ++d) {
    for (int n = count; n < width; ++n) panel[d * width + n] = A(0);
  }
}

/// Packs value rows to [count, padded_dim]: row n is `at(n)` [dim]. Returns whether all are finite.
template <class A, class At>
bool pack_values(At at, int count, int dim, A* values) noexcept {
  int const width = padded_dim<A>(dim);
  A finite = A(0);  // x - x is 0 for finite x, NaN for the rest
  for (int n = 0; n < count; ++n, values += width) {
    auto const* const row = at(n);
    A off = A(0);
    for (int d = 0; d < dim; ++d) {
      A const x = static_cast<A>(row[d]);
      values[d] = x;
      off = off + (x - x);
    }
    finite += off;
    for (int d = dim; d < width; ++d) values[d] = A(0);
  }
  return finite == A(0);
}

/// Packs the rows of a tile for the product with keys: blocks of block_rows rows, [dim][block_rows]
/// each, times `scale`; rows beyond `rows` are zero.
template <class A, class At>
void pack_rows(At at, int rows, int dim, A scale, A* packed) noexcept {
  for (int first = 0; first < rows; first += block_rows, packed += block_rows * dim) {
    for (int r = 0; r < block_rows; ++r) {
      if (first + r < rows) {
        auto const* const row = at(first + r);
        for (int d = 0; d < dim; ++d) packed[d * block_rows + r] = static_cast<A>(row[d]) * scale;
      } else {
        for (int d = 0; d < dim; ++d) packed[d * block_rows + r] = A(0);
      }
    }
  }
}

}  // namespace omnisparse::cpu
