/// @file
/// The CUDA backend's tag, its memory, and plans that cross between host and device.
#pragma once

#include <omnisparse/core/memory.hpp>
#include <omnisparse/core/status.hpp>
#include <omnisparse/plan/check.hpp>
#include <omnisparse/plan/plan.hpp>

#include <cuda_runtime_api.h>

#include <initializer_list>

#if CUDART_VERSION < 12040
#  error "omnisparse: the CUDA backend needs CUDA 12.4 or newer: update the CUDA Toolkit"
#endif

namespace omnisparse {

namespace backend {

/// Which kernels a CUDA call runs.
enum class cuda_path : unsigned char {
  automatic,  ///< Hopper's own where the binary, the GPU and the shape allow it, else portable
  portable    ///< mma.sync kernels, on any GPU of compute capability 8.0 and newer
};

/// NVIDIA GPUs. Calls are asynchronous on the stream that they are given, never allocate, never
/// wait for the host, and may be captured in a graph.
struct cuda {
  using space = device;
  using stream = cudaStream_t;
  cuda_path path = cuda_path::automatic;
};

}  // namespace backend

/// Memory of the current device. Zeroed, and ready when the constructor that asked returns.
template <>
struct memory<device> {
  static void* allocate(std::size_t bytes) noexcept {
    void* p = nullptr;
    if (cudaMalloc(&p, bytes) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());  // reported by the null; not left for the next call
      return nullptr;
    }
    if (cudaMemset(p, 0, bytes) != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess) {
      cudaFree(p);
      return nullptr;
    }
    return p;
  }
  static void release(void* p) noexcept { static_cast<void>(cudaFree(p)); }
};

namespace detail {

// A CUDA error as a status.
inline status device_status(cudaError_t error) noexcept {
  if (error == cudaSuccess) return {};
  return {status_code::device_error,
          "omnisparse: the CUDA runtime refused a launch or a copy: see status::device_error",
          static_cast<int>(error)};
}

// What the launches since the last look came to.
inline status launch_status() noexcept { return device_status(cudaGetLastError()); }

}  // namespace detail

/// Copies a plan into the memory of another, in any pair of spaces, asynchronously on `on` (with
/// pageable host memory the call returns when the host side is done). Both must have the same
/// shape, chunk and capacity, memory for every part, but for recalls, which both may lack, and no
/// memory in common; refused otherwise, before anything is written.
template <class To, class From>
status copy_plan(plan_view<To> const& to, plan_view<From> const& from,
                 cudaStream_t on = {}) noexcept {
  if (status const bad = detail::check_plan_copy(to, from); !bad.ok()) return bad;
  auto const copy = [on](void* t, void const* f, std::int64_t count, std::size_t size) {
    return count == 0 || t == nullptr
               ? cudaSuccess  // recalls may be left out of both
               : cudaMemcpyAsync(t, f, static_cast<std::size_t>(count) * size, cudaMemcpyDefault,
                                 on);
  };
  std::int64_t const lists = from.list_count();
  for (cudaError_t const error : {copy(to.rows, from.rows, from.row_count(), sizeof(row_class)),
                                  copy(to.kept_counts, from.kept_counts, lists, sizeof(int)),
                                  copy(to.recalls, from.recalls, lists, sizeof(float)),
                                  copy(to.kept, from.kept, lists * from.capacity, sizeof(int))}) {
    if (error != cudaSuccess) return detail::device_status(error);
  }
  return {};
}

}  // namespace omnisparse
