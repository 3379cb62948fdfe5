/// @file
/// A value that the compiler does not see through.
#pragma once

#include <cstdint>

namespace omnisparse::ptx {

/// The same number, from where the compiler cannot tell: what is computed from it in a loop is not
/// computed ahead of the loop and kept in registers.
__device__ inline std::uint32_t opaque(std::uint32_t x) noexcept {
  asm volatile("" : "+r"(x));
  return x;
}

}  // namespace omnisparse::ptx
