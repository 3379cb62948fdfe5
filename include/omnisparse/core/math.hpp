/// @file
/// Arithmetic that policies and kernels share. In place of <algorithm>, whose constexpr functions
/// device code may not call without a compiler flag.
#pragma once

#include <omnisparse/core/config.hpp>

#include <cstdint>
#include <type_traits>

namespace omnisparse {

/// The smaller of two values; the first on a tie.
template <class T>
OMNISPARSE_HD constexpr T smaller(T a, T b) noexcept {
  return b < a ? b : a;
}

/// The larger of two values; the first on a tie.
template <class T>
OMNISPARSE_HD constexpr T larger(T a, T b) noexcept {
  return a < b ? b : a;
}

/// `x` moved into [low, high]; `low` wins where the interval is empty.
template <class T>
OMNISPARSE_HD constexpr T clamped(T x, T low, T high) noexcept {
  return larger(low, smaller(x, high));
}

/// The number of parts of size `part` > 0 that cover `whole` >= 0.
template <class T>
OMNISPARSE_HD constexpr T ceil_div(T whole, T part) noexcept {
  return whole / part + (whole % part != 0 ? 1 : 0);
}

/// Is `x` a number in [0, most]? Not for NaN, by the bits: compilers that are told that there is no
/// NaN drop a comparison that would find one.
OMNISPARSE_HD constexpr bool is_up_to(float x, float most) noexcept {
  auto const bits = __builtin_bit_cast(std::uint32_t, x);
  return bits <= __builtin_bit_cast(std::uint32_t, most) || bits == 0x80000000u;
}
OMNISPARSE_HD constexpr bool is_up_to(double x, double most) noexcept {
  auto const bits = __builtin_bit_cast(std::uint64_t, x);
  return bits <= __builtin_bit_cast(std::uint64_t, most) || bits == 0x8000000000000000u;
}

/// `x` >= 0 rounded up to a multiple of `step` > 0.
template <class T>
OMNISPARSE_HD constexpr T round_up(T x, T step) noexcept {
  return ceil_div(x, step) * step;
}

namespace detail {

template <class A>
using bits_of = std::conditional_t<sizeof(A) == 8, std::uint64_t, std::uint32_t>;

// The bits of |x|, which ascend as magnitudes do: 0, finite, infinity, NaN.
template <class A>
OMNISPARSE_HD constexpr bits_of<A> magnitude_bits(A x) noexcept {
  return static_cast<bits_of<A>>(__builtin_bit_cast(bits_of<A>, x) << 1) >> 1;
}

template <class A>
inline constexpr bits_of<A> infinity_bits =
    sizeof(A) == 8 ? static_cast<bits_of<A>>(0x7ff0000000000000u) : bits_of<A>{0x7f800000u};

// `x`, of which the compiler shall not know where it comes from where flags let it assume that
// numbers are finite: a constant that is not would make what is computed from it undefined.
template <class A>
OMNISPARSE_HD constexpr A unknown(A x) noexcept {
#if defined(__GNUC__) && __FINITE_MATH_ONLY__ && !defined(__CUDA_ARCH__)
  if (!__builtin_is_constant_evaluated()) {
    auto bits = __builtin_bit_cast(bits_of<A>, x);
    asm("" : "+r"(bits));
    return __builtin_bit_cast(A, bits);
  }
#endif
  return x;
}

}  // namespace detail

/// Is `x`, float or double, a NaN? Asks its bits, so that no compiler flag makes it always false.
template <class A>
OMNISPARSE_HD constexpr bool is_nan(A x) noexcept {
  return detail::magnitude_bits(x) > detail::infinity_bits<A>;
}

/// Is `x`, float or double, neither infinite nor a NaN? Asks its bits, as `is_nan` does.
template <class A>
OMNISPARSE_HD constexpr bool is_finite(A x) noexcept {
  return detail::magnitude_bits(x) < detail::infinity_bits<A>;
}

}  // namespace omnisparse
