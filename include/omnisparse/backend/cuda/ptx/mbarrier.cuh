/// @file
/// Barriers in shared memory that count arrivals and bytes. sm_90.
#pragma once

#include <cstdint>

namespace omnisparse::ptx {

/// The address of an object in shared memory, as instructions take it.
__device__ __forceinline__ std::uint32_t shared_address(void const* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// A barrier whose phase ends after `count` arrivals and all bytes that were announced.
struct mbarrier {
  std::uint64_t word;

  /// By one thread, before anybody else touches the barrier; then `publish_barriers`, then a
  /// barrier of the block.
  // mbarrier.init.shared::cta.b64 [addr], count;
  __device__ __forceinline__ void init(std::uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(count)
                 : "memory");
  }

  // mbarrier.arrive.shared::cta.b64 _, [addr];
  __device__ __forceinline__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }

  /// One arrival that also announces bytes to be copied: before the copies are started.
  // mbarrier.arrive.expect_tx.shared::cta.b64 _, [addr], bytes;
  __device__ __forceinline__ void arrive_expecting(std::uint32_t bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)),
        "r"(bytes)
        : "memory");
  }

  /// Returns once the phase of this parity is over. A fresh barrier counts as past phase 1. The
  /// loop is inside the assembly, or the compiler unrolls the spin.
  // mbarrier.try_wait.parity.shared::cta.b64 p, [addr], parity;
  __device__ __forceinline__ void wait(std::uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\n"
        "bra again;\n"
        "over:\n"
        "}\n" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
  }
};

/// Makes initialised barriers known to the copy engine.
// fence.mbarrier_init.release.cluster;
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// Makes what this thread wrote to shared memory visible to products and copies that read it.
// fence.proxy.async.shared::cta;
__device__ __forceinline__ void fence_shared_for_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace omnisparse::ptx
