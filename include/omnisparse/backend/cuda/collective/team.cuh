/// @file
/// CTAs that share one task: a cluster where there are clusters, one CTA on older GPUs.
#pragma once

#include <omnisparse/backend/cuda/ptx/cluster.cuh>

namespace omnisparse::collective {

/// The CTAs that work on one list. Their number is chosen by the launch: 1, 2, 4 or 8 from compute
/// capability 9.0 on, 1 before. Results must not depend on it.
struct team {
  static constexpr int most = 8;       ///< CTAs
  static constexpr int threads = 512;  ///< of a CTA: two CTAs fit a multiprocessor
  static constexpr int warps = threads / 32;

  int rank = 0;
  int size = 1;

  static __device__ team current() noexcept {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    return {ptx::cluster_rank(), ptx::cluster_size()};
#else
    return {};
#endif
  }

  /// A non-negative n by the size of the team, rounded down; the size is a power of two.
  __device__ int divides(int n) const noexcept { return n >> (__ffs(size) - 1); }

  /// A barrier of all threads of all CTAs, and its two halves; what a CTA wrote to its own shared
  /// memory before it is seen by all after it. Only that: to wait for global memory too would take
  /// several times as long. Before the first one a CTA may not even have begun.
  __device__ void sync() const noexcept {
    arrive();
    wait();
  }
  __device__ void arrive() const noexcept {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    ptx::release_shared();
    ptx::cluster_arrive();
#endif
  }
  __device__ void wait() const noexcept {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    ptx::cluster_wait();
#else
    __syncthreads();
#endif
  }

  /// The copy that the CTA of this rank has of a variable in shared memory, to read.
  template <class T>
  __device__ T const& at(T const& shared, int of_rank) const noexcept {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    return *ptx::map_shared(&shared, of_rank);
#else
    static_cast<void>(of_rank);
    return shared;
#endif
  }
};

/// A CTA that needs no others, whatever cluster it is in.
struct alone {
  static constexpr int most = 1;
  static constexpr int rank = 0;
  static constexpr int size = 1;

  static __device__ void sync() noexcept { __syncthreads(); }
  template <class T>
  static __device__ T const& at(T const& shared, int) noexcept {
    return shared;
  }
};

}  // namespace omnisparse::collective
