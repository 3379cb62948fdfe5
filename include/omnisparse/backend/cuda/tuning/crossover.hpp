/// @file
/// From which size on planning pays on NVIDIA GPUs.
#pragma once

#include <omnisparse/core/crossover.hpp>
#include <omnisparse/core/policy.hpp>

namespace omnisparse::tuning {

/// Measured by `bench_cuda_attention --benchmark_filter='local_first|published'`, `plans` over
/// `dense`, on planted inputs: see bench/results/cuda_attention.md. Short calls are bound by two
/// dozen launches, which no number of tokens tells of where heads are few or narrow: hence the
/// operations.
template <class Policies>
constexpr crossover_point cuda_crossover(bool hopper) noexcept {
  bool const estimates = detail::wants<Policies>::far || detail::wants<Policies>::coverage;
  return {.kv_tokens = 8192, .flops = hopper && estimates ? 0.4e12 : 0.2e12};
}

}  // namespace omnisparse::tuning
