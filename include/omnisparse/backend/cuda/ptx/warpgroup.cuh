/// @file
/// What warps do together: registers handed between warpgroups, named barriers. sm_90a.
#pragma once

namespace omnisparse::ptx {

/// Gives registers back until each thread of the warpgroup has N. By all its warps, once.
// setmaxnreg.dec.sync.aligned.u32 N;
template <int N>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

/// Waits until each thread of the warpgroup can have N registers. By all its warps, once.
// setmaxnreg.inc.sync.aligned.u32 N;
template <int N>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

/// Waits at named barrier `id`, 1 to 15, until `threads` threads have arrived there.
// bar.sync id, threads;
__device__ __forceinline__ void wait_at(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Arrives at named barrier `id` without waiting.
// bar.arrive id, threads;
__device__ __forceinline__ void arrive_at(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace omnisparse::ptx
