/// @file
/// A running log-sum-exp in log2 units, kept by one lane for its columns, merged over four at last.
#pragma once

#include <omnisparse/backend/cuda/ptx/ex2.cuh>

namespace omnisparse::collective {

inline constexpr float log2_e = 1.44269504088896340736f, ln_2 = 0.69314718055994530942f;

/// 1 / sqrt D, and log2(e) / sqrt D.
template <int D>
inline constexpr float inverse_root = D == 64    ? 0.125f
                                      : D == 128 ? 0.08838834764831844f
                                                 : 0.0625f;
template <int D>
inline constexpr float log2_scale =
    static_cast<float>(1.44269504088896340736 * (D == 64    ? 0.125
                                                 : D == 128 ? 0.08838834764831844055
                                                            : 0.0625));

/// log2(sum(exp2(x))) of what was added so far: high + log2(total). Empty at first.
struct log_sum {
  float high = -__builtin_huge_valf();
  float total = 0.f;

  /// What is subtracted before exp2: never -inf.
  __device__ static float anchor(float high) noexcept {
    return high == -__builtin_huge_valf() ? 0.f : high;
  }
  /// Adds N terms at once.
  template <int N>
  __device__ void add(float const (&x)[N]) noexcept {
    float top = high;
#pragma unroll
    for (int n = 0; n < N; ++n) top = fmaxf(top, x[n]);
    float const base = anchor(top);
    total *= ptx::ex2(high - base);
#pragma unroll
    for (int n = 0; n < N; ++n) total += ptx::ex2(x[n] - base);
    high = top;
  }
  __device__ void merge(log_sum const& other) noexcept {
    float const top = fmaxf(high, other.high), base = anchor(top);
    total = total * ptx::ex2(high - base) + other.total * ptx::ex2(other.high - base);
    high = top;
  }
  /// The union over the four lanes that share a row, in every one of them.
  __device__ void merge_quad() noexcept {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      merge({__shfl_xor_sync(~0u, high, step), __shfl_xor_sync(~0u, total, step)});
    }
  }
  /// In log2 units; -inf for nothing.
  __device__ float value() const noexcept { return anchor(high) + log2f(total); }
};

}  // namespace omnisparse::collective
