/// @file
/// From which size on planning pays on NVIDIA GPUs.
#pragma once

#include <omnisparse/core/crossover.hpp>
#include <omnisparse/core/policy.hpp>

namespace omnisparse::tuning {

/// Measured by `bench_cuda_attention --benchmark_filter=preset`, `plans_of_dense`, on planted
/// inputs: see bench/results/cuda_attention.md. Short calls are bound by some thirty launches,
/// which no number of tokens tells of where heads are few: hence the operations.
template <class Policies>
constexpr crossover_point cuda_crossover(bool hopper) noexcept {
  return hopper ? crossover_point{.kv_tokens = 8192, .flops = 0.24e12}
                : crossover_point{.kv_tokens = 8192, .flops = 0.12e12};
}

}  // namespace omnisparse::tuning
