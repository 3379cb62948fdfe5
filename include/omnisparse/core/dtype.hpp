/// @file
/// 16-bit storage types, bit-compatible with CUDA's, and the type each dtype accumulates in.
#pragma once

#include <omnisparse/core/config.hpp>

#include <cstdint>
#include <type_traits>

namespace omnisparse {

/// bfloat16 storage: the upper half of a float. Rounds to nearest even; NaN stays NaN.
struct bfloat16 {
  std::uint16_t bits = 0;

  constexpr bfloat16() noexcept = default;
  OMNISPARSE_HD constexpr explicit bfloat16(float x) noexcept {
    std::uint32_t const u = __builtin_bit_cast(std::uint32_t, x);
    std::uint32_t const rounded = u + 0x7fffu + ((u >> 16) & 1u);
    bool const nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<std::uint16_t>(nan ? (u >> 16) | 0x40u : rounded >> 16);
  }
  OMNISPARSE_HD constexpr operator float() const noexcept {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
  }
};

/// IEEE binary16 storage. Rounds to nearest even, overflows to infinity; NaN stays NaN.
struct half {
  std::uint16_t bits = 0;

  constexpr half() noexcept = default;
  OMNISPARSE_HD constexpr explicit half(float x) noexcept {
    std::uint32_t const u = __builtin_bit_cast(std::uint32_t, x);
    std::uint32_t const magnitude = u & 0x7fffffffu;
    std::uint32_t h = 0;
    if (magnitude >= 0x47800000u) {  // 65536 and more: infinity or NaN
      h = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // subnormal: an addition does the rounding
      float const aligned = __builtin_bit_cast(float, magnitude) + 0.5f;
      h = __builtin_bit_cast(std::uint32_t, aligned) - 0x3f000000u;
    } else {
      h = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    bits = static_cast<std::uint16_t>(h | ((u >> 16) & 0x8000u));
  }
  OMNISPARSE_HD constexpr operator float() const noexcept {
    std::uint32_t const sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    std::uint32_t const shifted = static_cast<std::uint32_t>(bits & 0x7fffu) << 13;
    std::uint32_t const exponent = shifted & 0x0f800000u;
    std::uint32_t u = shifted + 0x38000000u;
    if (exponent == 0x0f800000u) u += 0x38000000u;  // infinity, NaN
    if (exponent == 0u) {                           // zero, subnormal
      float const f =
          __builtin_bit_cast(float, u + 0x00800000u) - __builtin_bit_cast(float, 0x38800000u);
      u = __builtin_bit_cast(std::uint32_t, f);
    }
    return __builtin_bit_cast(float, u | sign);
  }
};

static_assert(sizeof(bfloat16) == 2 && sizeof(half) == 2);

/// The types that q, k, v and out may have.
template <class T>
concept element = std::is_same_v<T, float> || std::is_same_v<T, double> ||
                  std::is_same_v<T, bfloat16> || std::is_same_v<T, half>;

/// The type a backend accumulates T in: double for double, else float.
template <class T>
using accumulator_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace omnisparse
