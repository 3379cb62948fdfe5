/// @file
/// Attention by Hopper's kernels.
#pragma once

#include <omnisparse/backend/cuda/hopper.cuh>

#define OMNISPARSE_COMPILED_LAUNCH_ATTEND(EXTERN, T, D, GATHERED, VALUES)          \
  EXTERN template status launch::launch_attend<T, D, GATHERED, VALUES>(            \
      collective::attend_task<T> const&, kernel::attend_maps const&, std::int64_t, \
      cudaStream_t) noexcept;

#define OMNISPARSE_COMPILED_ATTEND_GATHERED(EXTERN, T, D, VALUES) \
  EXTERN template status launch::attend_gathered<T, D, VALUES>(   \
      collective::attend_task<T>&, hopper_memory<T> const&, cudaStream_t) noexcept;

#define OMNISPARSE_COMPILED_HOPPER(EXTERN, T, D)                \
  OMNISPARSE_COMPILED_LAUNCH_ATTEND(EXTERN, T, D, false, true)  \
  OMNISPARSE_COMPILED_LAUNCH_ATTEND(EXTERN, T, D, false, false) \
  OMNISPARSE_COMPILED_LAUNCH_ATTEND(EXTERN, T, D, true, true)   \
  OMNISPARSE_COMPILED_LAUNCH_ATTEND(EXTERN, T, D, true, false)  \
  OMNISPARSE_COMPILED_ATTEND_GATHERED(EXTERN, T, D, true)       \
  OMNISPARSE_COMPILED_ATTEND_GATHERED(EXTERN, T, D, false)
