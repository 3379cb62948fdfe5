/// @file
/// A running log-sum-exp in log2 units, kept by one lane for its columns, merged over four at last.
#pragma once

#include <omnisparse/backend/cuda/collective/softmax_terms.hpp>
#include <omnisparse/backend/cuda/ptx/ex2.cuh>

namespace omnisparse::collective {

/// log2(sum(exp2(x))) of what was added so far: high + log2(total). Empty at first.
struct log_sum {
  static constexpr float lowest = -3.402823466e38f;
  float high = lowest;  ///< what exponents are taken against: at most 8 below the largest
  float total = 0.f;

  /// Adds the terms scale * x, scale > 0. Terms of -inf add nothing. Most of the time the largest
  /// has hardly grown, and nothing is rescaled.
  template <int N>
  __device__ void add(float const (&x)[N], float scale = 1.f) noexcept {
    float top = x[0];
#pragma unroll
    for (int n = 1; n < N; ++n) top = fmaxf(top, x[n]);
    top *= scale;
    if (top > high + 8.f) {
      total *= ptx::ex2(high - top);
      high = top;
    }
#pragma unroll
    for (int n = 0; n < N; ++n) total += ptx::ex2(x[n] * scale - high);
  }
  __device__ void merge(log_sum const& other) noexcept {
    float const top = fmaxf(high, other.high);
    total = total * ptx::ex2(high - top) + other.total * ptx::ex2(other.high - top);
    high = top;
  }
  /// In log2 units; -inf for nothing.
  __device__ float value() const noexcept { return high + __log2f(total); }
};

/// Merges four sums over the four lanes that share them: lane l gets the union of sums[l % 4].
__device__ inline log_sum merge_quad(log_sum const (&sums)[4]) noexcept {
  int const lane = static_cast<int>(threadIdx.x) % 4;
  // Chosen field by field: a choice between two structs of an array would put it into memory.
  auto const merged = [](bool second, log_sum const& x, log_sum const& y, int step) {
    log_sum keep{second ? y.high : x.high, second ? y.total : x.total};
    keep.merge({__shfl_xor_sync(~0u, second ? x.high : y.high, step),
                __shfl_xor_sync(~0u, second ? x.total : y.total, step)});
    return keep;
  };
  bool const odd = lane % 2 == 1, upper = lane / 2 == 1;
  return merged(upper, merged(odd, sums[0], sums[1], 1), merged(odd, sums[2], sums[3], 1), 2);
}

}  // namespace omnisparse::collective
