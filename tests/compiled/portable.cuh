/// @file
/// Attention by the portable kernels.
#pragma once

#include <omnisparse/backend/cuda/portable.cuh>

#define OMNISPARSE_COMPILED_PORTABLE(EXTERN, T, D)                                          \
  EXTERN template status launch::portable_attend<T, D, true>(collective::portable_task<T>,  \
                                                             cudaStream_t) noexcept;        \
  EXTERN template status launch::portable_attend<T, D, false>(collective::portable_task<T>, \
                                                              cudaStream_t) noexcept;
