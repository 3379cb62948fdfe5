/// @file
/// Copies of q, k and v in the layouts that the products read, widened to the accumulator type.
#pragma once

#include <omnisparse/backend/cpu/packet.hpp>
#include <omnisparse/core/dtype.hpp>
#include <omnisparse/core/math.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#if defined(__GNUC__) && !defined(__clang__)
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wignored-attributes"  // vector types as template arguments
#endif

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

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

/// Elements [0, lanes) of a row, widened.
template <class A, class T>
inline packet<A> load_widened(T const* row) noexcept {
  if constexpr (std::is_same_v<A, T>) {
    return simd::ploadu<packet<A>>(row);
  } else {
    A wide[lanes<A>];
    for (int d = 0; d < lanes<A>; ++d) wide[d] = static_cast<A>(row[d]);
    return simd::ploadu<packet<A>>(wide);
  }
}

/// The transpose of lanes rows from column d on, in registers; rows from `count` on are zero.
template <class A, class At>
inline simd::PacketBlock<packet<A>, lanes<A>> load_transposed(At const& at, int count,
                                                              int d) noexcept {
  simd::PacketBlock<packet<A>, lanes<A>> block;
  for (int n = 0; n < lanes<A>; ++n) {
    block.packet[n] = n < count ? load_widened<A>(at(n) + d) : simd::pset1<packet<A>>(A(0));
  }
  if constexpr (lanes<A> > 1) simd::ptranspose(block);
  return block;
}

/// Does the compiler take every number for finite? Vector maxima may then drop a NaN, so where one
/// matters it is looked for.
inline constexpr bool finite_math =
#if __FINITE_MATH_ONLY__
    true;
#else
    false;
#endif

/// The largest bits of |x| among these.
template <class A>
detail::bits_of<A> most_bits(A const* x, std::ptrdiff_t count) noexcept {
  detail::bits_of<A> most = 0;
  for (std::ptrdiff_t n = 0; n < count; ++n) most = larger(most, detail::magnitude_bits(x[n]));
  return most;
}

/// Are all of these finite?
template <class A>
bool all_finite(A const* x, std::ptrdiff_t count) noexcept {
  return most_bits(x, count) < detail::infinity_bits<A>;
}

/// Is one of these a NaN that vector code may not pass on? Looks only where it may not.
template <class A>
bool hides_nan(A const* x, std::ptrdiff_t count) noexcept {
  if constexpr (finite_math) return most_bits(x, count) > detail::infinity_bits<A>;
  else return false;
}

/// Magnitudes below which no sum of products of two elements, one from q and one from k, leaves the
/// range of A, for any D.
template <class A>
inline constexpr A modest = sizeof(A) == 8 ? static_cast<A>(0x1p494) : static_cast<A>(0x1p46);

/// Packs `count` <= strip keys into two panels [dim][lanes]: key n is row `at(n)` [dim]. Columns
/// beyond count are zero. Returns whether all elements but NaN are modest.
template <class A, class At>
bool pack_panel(At at, int count, int dim, A* panel) noexcept {
  constexpr int width = lanes<A>;
  auto most = simd::pset1<packet<A>>(A(0));
  A tail = A(0);
  A const* const begin = panel;
  int const whole = dim / width * width;
  for (int first = 0; first < strip<A>; first += width, panel += std::ptrdiff_t{width} * dim) {
    int const some = count - first;
    decltype(at(0)) from[lanes<A>];
    for (int n = 0; n < smaller(width, some); ++n) from[n] = at(first + n);
    auto const key = [&](int n) { return from[n]; };
    for (int d = 0; d < whole; d += width) {
      auto const block = load_transposed<A>(key, some, d);
      for (int n = 0; n < width; ++n) {
        simd::pstoreu(panel + (d + n) * width, block.packet[n]);
        most = simd::pmax(most, simd::pabs(block.packet[n]));
      }
    }
    for (int d = whole; d < dim; ++d) {
      for (int n = 0; n < width; ++n) {
        A const x = n < some ? static_cast<A>(key(n)[d]) : A(0);
        panel[d * width + n] = x;
        tail = larger(tail, x < A(0) ? -x : x);
      }
    }
  }
  return larger(tail, simd::predux_max(most)) < modest<A> && !hides_nan(begin, panel - begin);
}

/// Packs value rows to [count, padded_dim]: row n is `at(n)` [dim]. Returns whether all are finite.
template <class A, class At>
bool pack_values(At at, int count, int dim, A* values) noexcept {
  int const width = padded_dim<A>(dim);
  detail::bits_of<A> most = 0;
  for (int n = 0; n < count; ++n, values += width) {
    auto const* const row = at(n);
    for (int d = 0; d < dim; ++d) {
      A const x = static_cast<A>(row[d]);
      values[d] = x;
      most = larger(most, detail::magnitude_bits(x));
    }
    for (int d = dim; d < width; ++d) values[d] = A(0);
  }
  return most < detail::infinity_bits<A>;
}

/// Elements to allocate for the packed rows of a tile of `rows`: pack_rows stores whole packets.
template <class A>
constexpr std::size_t packed_rows_size(int rows, int dim) noexcept {
  return static_cast<std::size_t>(round_up(rows, block_rows)) * static_cast<std::size_t>(dim) +
         static_cast<std::size_t>(strip<A>);
}

/// Packs the rows of a tile for the product with keys: blocks of block_rows rows, [dim][block_rows]
/// each, times `scale`; rows beyond `rows` are zero. Writes up to packed_rows_size elements.
/// Returns whether all that it wrote but NaN is modest.
template <class A, class At>
bool pack_rows(At at, int rows, int dim, A scale, A* packed) noexcept {
  constexpr int width = lanes<A>;
  constexpr std::size_t parts = std::size_t{ceil_div(block_rows, width)};
  auto const factor = simd::pset1<packet<A>>(scale);
  auto most = simd::pset1<packet<A>>(A(0));
  A tail = A(0);
  A const* const begin = packed;
  int const whole = dim / width * width;
  for (int first = 0; first < rows; first += block_rows, packed += block_rows * dim) {
    int const some = smaller(block_rows, rows - first);
    decltype(at(0)) from[block_rows];
    for (int r = 0; r < some; ++r) from[r] = at(first + r);
    auto const row = [&](int r) { return from[r]; };
    for (int d = 0; d < whole; d += width) {
      simd::PacketBlock<packet<A>, width> block[parts];
      for (std::size_t m = 0; m < parts; ++m) {
        int const r0 = static_cast<int>(m) * width;
        block[m] = load_transposed<A>([&](int r) { return row(r0 + r); }, some - r0, d);
      }
      // A last packet may reach into the next column, which is written after it.
      for (int n = 0; n < width; ++n) {
        for (std::size_t m = 0; m < parts; ++m) {
          auto const x = simd::pmul(block[m].packet[n], factor);
          simd::pstoreu(packed + (d + n) * block_rows + static_cast<int>(m) * width, x);
          most = simd::pmax(most, simd::pabs(x));
        }
      }
    }
    for (int d = whole; d < dim; ++d) {
      for (int r = 0; r < block_rows; ++r) {
        A const x = r < some ? static_cast<A>(row(r)[d]) * scale : A(0);
        packed[d * block_rows + r] = x;
        tail = larger(tail, x < A(0) ? -x : x);
      }
    }
  }
  return larger(tail, simd::predux_max(most)) < modest<A> && !hides_nan(begin, packed - begin);
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET

#if defined(__GNUC__) && !defined(__clang__)
#  pragma GCC diagnostic pop
#endif
