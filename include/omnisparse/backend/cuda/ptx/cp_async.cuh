/// @file
/// Copies from global to shared memory that a thread does not wait for, compute capability 8.0.
#pragma once

namespace omnisparse::ptx {

// cp.async.cg.shared.global [to], [from], 16, bytes;
/// 16 bytes to shared memory, both addresses 16-byte aligned; `bytes` 0 writes zeros and reads
/// nothing.
__device__ inline void cp_async_16(void* to, void const* from, int bytes = 16) noexcept {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from)), "r"(bytes)
               : "memory");
}

// cp.async.cg.shared.global.L2::256B [to], [from], 16, bytes;
/// The same, and the 256 bytes around them come to L2: for rows that are read piece by piece.
__device__ inline void cp_async_16_of_row(void* to, void const* from, int bytes) noexcept {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from)), "r"(bytes)
               : "memory");
}

// cp.async.ca.shared.global [to], [from], 4;
/// 4 bytes to shared memory, both addresses 4-byte aligned.
__device__ inline void cp_async_4(void* to, void const* from) noexcept {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from))
               : "memory");
}

// cp.async.commit_group;
/// Closes a group: the copies that this thread asked for since the last one.
__device__ inline void cp_async_commit() noexcept {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// cp.async.wait_group N;
/// Waits until at most the latest `N` groups of this thread are still on their way.
template <int N>
__device__ inline void cp_async_wait() noexcept {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace omnisparse::ptx
