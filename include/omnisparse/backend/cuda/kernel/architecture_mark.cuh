/// @file
/// Which code of this binary the current device runs.
#pragma once

namespace omnisparse::kernel {

/// Never launched. It takes shared memory only where it was compiled for sm_90a, so its attributes
/// tell the host whether this device runs that code: a Hopper GPU also runs what was made from
/// older PTX, where the bodies of the Hopper kernels are empty.
template <class = void>
__global__ void architecture_mark([[maybe_unused]] int* out) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __shared__ int mark[32];
  mark[threadIdx.x % 32] = static_cast<int>(threadIdx.x);
  __syncthreads();
  *out = mark[(threadIdx.x + 1) % 32];
#endif
}

}  // namespace omnisparse::kernel
