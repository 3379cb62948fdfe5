/// @file
/// Sorting of rows by class: the same kernels for every dtype and D.
#pragma once

#include <omnisparse/backend/cuda/gather.cuh>

#define OMNISPARSE_COMPILED_GATHER(EXTERN, T, D)                                           \
  EXTERN template status launch::gather_rows(                                              \
      attention_call<T, device> const&, near_field const&, mask, plan_view<device> const&, \
      kernel::class_mask, kernel::row_schedule const&, cudaStream_t, int const*) noexcept;
