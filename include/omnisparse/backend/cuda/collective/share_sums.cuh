/// @file
/// Eight sums over some lanes at the price of about one.
#pragma once

namespace omnisparse::collective {

/// Sums eight values over groups of `Lanes` = 8, 16 or 32 lanes. Lane l of its group returns the
/// sum of x[4 (l & 1) + 2 (l >> 1 & 1) + (l >> 2 & 1)]: in each of three steps a lane keeps half of
/// its values and gives the other half away.
template <int Lanes>
__device__ inline float share_sums(float (&x)[8]) noexcept {
  static_assert(Lanes == 8 || Lanes == 16 || Lanes == 32);
#pragma unroll
  for (int step = 1, kept = 4; step < 8; step *= 2, kept /= 2) {
    bool const upper = (static_cast<int>(threadIdx.x) & step) != 0;
#pragma unroll
    for (int n = 0; n < kept; ++n) {
      float const give = upper ? x[n] : x[n + kept];
      x[n] = (upper ? x[n + kept] : x[n]) + __shfl_xor_sync(~0u, give, step);
    }
  }
#pragma unroll
  for (int step = 8; step < Lanes; step *= 2) x[0] += __shfl_xor_sync(~0u, x[0], step);
  return x[0];
}

}  // namespace omnisparse::collective
