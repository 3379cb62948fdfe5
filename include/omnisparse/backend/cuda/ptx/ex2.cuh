/// @file
/// The fast power of two, on every GPU.
#pragma once

namespace omnisparse::ptx {

// ex2.approx.ftz.f32 d, x;
/// 2^x within 2 ulp; 0 for -inf and for results below the smallest normal number.
__device__ inline float ex2(float x) noexcept {
  float d;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}

}  // namespace omnisparse::ptx
