/// @file
/// Arithmetic that policies and kernels share. In place of <algorithm>, whose constexpr functions
/// device code may not call without a compiler flag.
#pragma once

#include <omnisparse/core/config.hpp>

#include <cstdint>

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

}  // namespace omnisparse
