/// @file
/// Masks of neighbouring bits.
#pragma once

namespace omnisparse::ptx {

/// A word with `count` bits from `first` on set; what would lie beyond bit 31 is not.
// bmsk.clamp.b32 mask, first, count;
__device__ __forceinline__ unsigned bits_from(unsigned first, unsigned count) {
  unsigned mask;
  asm("bmsk.clamp.b32 %0, %1, %2;" : "=r"(mask) : "r"(first), "r"(count));
  return mask;
}

}  // namespace omnisparse::ptx
