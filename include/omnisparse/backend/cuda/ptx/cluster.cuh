/// @file
/// Clusters of CTAs: who am I, wait for each other, look into each other's shared memory. sm_90.
#pragma once

#include <cstdint>

namespace omnisparse::ptx {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/// The place of this CTA in its cluster.
// mov.u32 rank, %cluster_ctarank;
__device__ inline int cluster_rank() noexcept {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

/// CTAs of this cluster; 1 without one.
// mov.u32 size, %cluster_nctarank;
__device__ inline int cluster_size() noexcept {
  std::uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return static_cast<int>(size);
}

/// What this thread wrote to its CTA's shared memory is seen in the cluster by whoever learns of
/// what it does next. A general fence also waits for all of global memory.
// fence.release.sync_restrict::shared::cta.cluster;
__device__ inline void release_shared() noexcept {
  asm volatile("fence.release.sync_restrict::shared::cta.cluster;" ::: "memory");
}

/// The two halves of a barrier of the cluster's threads; what was released before the first is seen
/// after the second. By whole warps.
// barrier.cluster.arrive.relaxed.aligned;
__device__ inline void cluster_arrive() noexcept {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
// barrier.cluster.wait.acquire.aligned;
__device__ inline void cluster_wait() noexcept {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// Where another CTA has the same variable in its shared memory. Generic addresses.
// mapa.u64 address, shared, rank;
template <class T>
__device__ T* map_shared(T* shared, int rank) noexcept {
  std::uint64_t address;
  asm("mapa.u64 %0, %1, %2;"
      : "=l"(address)
      : "l"(reinterpret_cast<std::uint64_t>(shared)), "r"(rank));
  return reinterpret_cast<T*>(address);
}

#endif

}  // namespace omnisparse::ptx
