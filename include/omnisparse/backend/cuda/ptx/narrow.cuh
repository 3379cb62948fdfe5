/// @file
/// Pairs of 16-bit values in a register, and their ways to and from memory. sm_90.
#pragma once

#include <omnisparse/core/dtype.hpp>

#include <cstdint>
#include <type_traits>

namespace omnisparse::ptx {

/// Two values of T in a register, `low` in its lower half, rounded to nearest even.
// cvt.rn.bf16x2.f32 pair, high, low;   cvt.rn.f16x2.f32 pair, high, low;
template <class T>
__device__ __forceinline__ std::uint32_t pair_of(float low, float high) {
  std::uint32_t pair;
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

/// The values of such a pair.
// cvt.f32.f16 value, low;
template <class T>
__device__ __forceinline__ float low_of(std::uint32_t pair) {
  float value;
  if constexpr (std::is_same_v<T, bfloat16>) {
    value = __uint_as_float(pair << 16);
  } else {
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<std::uint16_t>(pair)));
  }
  return value;
}
template <class T>
__device__ __forceinline__ float high_of(std::uint32_t pair) {
  if constexpr (std::is_same_v<T, bfloat16>) return __uint_as_float(pair & 0xffff0000u);
  else return low_of<T>(pair >> 16);
}

/// The squares of two bfloat16 values, each rounded once: adding -0 changes no product.
// fma.rn.bf16x2 squares, pair, pair, {-0, -0};
__device__ __forceinline__ std::uint32_t square_pair(std::uint32_t pair) {
  std::uint32_t squares;
  asm("fma.rn.bf16x2 %0, %1, %1, %2;" : "=r"(squares) : "r"(pair), "r"(0x80008000u));
  return squares;
}

/// Stores four 8 x 8 matrices of 16-bit values; lane l gives the address of row l % 8 of matrix
/// l / 8, and its pair of each matrix, laid out as the accumulators of a product are.
// stmatrix.sync.aligned.m8n8.x4.shared.b16 [to], {a, b, c, d};
__device__ __forceinline__ void store_matrices(std::uint32_t to, std::uint32_t a, std::uint32_t b,
                                               std::uint32_t c, std::uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a),
               "r"(b), "r"(c), "r"(d)
               : "memory");
}

/// Asks for the line of global memory at `p` to be brought to L2.
// prefetch.global.L2 [p];
__device__ __forceinline__ void prefetch(void const* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p)));
}

}  // namespace omnisparse::ptx
