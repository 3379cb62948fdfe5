/// @file
/// Copies of tensor tiles by the copy engine. One thread starts a copy. sm_90.
#pragma once

#include <omnisparse/backend/cuda/ptx/mbarrier.cuh>

#include <cuda.h>

namespace omnisparse::ptx {

/// How long a copied line should stay in L2.
struct cache_hint {
  std::uint64_t word;

  // createpolicy.fractional.L2::evict_last.b64 policy, 1.0;
  __device__ static __forceinline__ cache_hint keep() {
    cache_hint h;
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(h.word));
    return h;
  }
  // createpolicy.fractional.L2::evict_first.b64 policy, 1.0;
  __device__ static __forceinline__ cache_hint read_once() {
    cache_hint h;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(h.word));
    return h;
  }
};

/// Copies the box at (x, row, head, batch) of a map of rank 4 to shared memory and counts its bytes
/// on `full`. What lies outside the tensor arrives as zeros, and counts.
// cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint
//     [to], [map, {x, row, head, batch}], [full], hint;
__device__ __forceinline__ void load_tile(void* to, CUtensorMap const* map, mbarrier* full, int x,
                                          int row, int head, int batch, cache_hint hint) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(full)), "r"(x), "r"(row), "r"(head), "r"(batch), "l"(hint.word)
      : "memory");
}

/// Copies shared memory to the box at (x, row, head, batch); what lies outside the tensor is
/// dropped. The source may be overwritten after `commit_stores` and `wait_for_store_reads`.
// cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [map, {x, row, head, batch}], [from];
__device__ __forceinline__ void store_tile(CUtensorMap const* map, void const* from, int x, int row,
                                           int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(
          map),
      "r"(x), "r"(row), "r"(head), "r"(batch), "r"(shared_address(from))
      : "memory");
}

/// Ends a group of this thread's stores.
// cp.async.bulk.commit_group;
__device__ __forceinline__ void commit_stores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/// Waits until the copy engine has read the sources of this thread's stores.
// cp.async.bulk.wait_group.read 0;
__device__ __forceinline__ void wait_for_store_reads() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

}  // namespace omnisparse::ptx
