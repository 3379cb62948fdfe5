/// @file
/// Block moments and what far_mass and coverage make of them.
#pragma once

#include <omnisparse/backend/cuda/observe.cuh>
#include <omnisparse/rescue/coverage.hpp>
#include <omnisparse/selector/far_mass.hpp>

#define OMNISPARSE_COMPILED_FAR(EXTERN, T, D, DECISION)                              \
  EXTERN template status launch::decide_by_far<D>(                                   \
      attention_call<T, device> const&, kernel::moment_source const&,                \
      kernel::block_moments const&, far_estimate const&, lse_view<T, device> const&, \
      kernel::DECISION const&, cudaStream_t) noexcept;

#define OMNISPARSE_COMPILED_MOMENTS(EXTERN, T, D)                                            \
  EXTERN template status launch::measure_moments<D>(                                         \
      attention_call<T, device> const&, kernel::moment_source const&, kernel::block_moments, \
      far_estimate const&, cudaStream_t) noexcept;                                           \
  OMNISPARSE_COMPILED_FAR(EXTERN, T, D, far_decision<selector::far_mass>)                    \
  OMNISPARSE_COMPILED_FAR(EXTERN, T, D, coverage_decision<rescue::coverage>)
