/// @file
/// From which size on planning pays on the CPU.
#pragma once

#include <omnisparse/core/crossover.hpp>
#include <omnisparse/core/policy.hpp>

namespace omnisparse::tuning {

/// Measured by `bench_attention --benchmark_filter='local_first|published'`, `plans_of_dense`, on
/// planted inputs: see bench/results/cpu_crossover.md. What looks at nothing plans for nothing.
template <class Policies>
inline constexpr crossover_point cpu_crossover =
    detail::wants<Policies>::coverage || detail::wants<Policies>::far
        ? crossover_point{.kv_tokens = 3072}
        : crossover_point{};

}  // namespace omnisparse::tuning
