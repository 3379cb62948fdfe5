/// @file
/// What the GPU examples share: skipping in sight, and tensors that live on the device.
#pragma once

#include <omnisparse/attention.hpp>

#include <cstdio>
#include <vector>

namespace gpu {

/// Is there a GPU? If not, says so; an example then returns 77, which ctest lists as skipped.
inline bool is_here() {
  void* byte = nullptr;
  cudaError_t const error = cudaMalloc(&byte, 1);
  if (error != cudaSuccess) std::printf("skipped: no usable GPU: %s\n", cudaGetErrorString(error));
  cudaFree(byte);
  return error == cudaSuccess;
}

/// A [B, H, N, D] tensor on the device.
template <class T>
class tensor {
 public:
  explicit tensor(int const (&extents)[4])
      : memory_(sizeof(T) * static_cast<std::size_t>(extents[0]) *
                static_cast<std::size_t>(extents[1]) * static_cast<std::size_t>(extents[2]) *
                static_cast<std::size_t>(extents[3])),
        view{static_cast<T*>(memory_.data()), extents} {}
  tensor(int const (&extents)[4], std::vector<T> const& values) : tensor(extents) {
    omnisparse::or_throw(omnisparse::detail::device_status(
        cudaMemcpy(view.data, values.data(), memory_.bytes(), cudaMemcpyDefault)));
  }
  /// The values, once all work on the device is done.
  std::vector<T> values() const {
    std::vector<T> values(static_cast<std::size_t>(view.size()));
    omnisparse::or_throw(omnisparse::detail::device_status(
        cudaMemcpy(values.data(), view.data, memory_.bytes(), cudaMemcpyDefault)));
    return values;
  }

 private:
  omnisparse::buffer<omnisparse::device> memory_;

 public:
  omnisparse::tensor_view<T, omnisparse::device> view;
};

/// A device plan, copied to the host.
inline omnisparse::attention_plan<omnisparse::host> on_host(
    omnisparse::plan_view<omnisparse::device> const& plan) {
  omnisparse::attention_plan<omnisparse::host> copy(plan.shape, {plan.chunk_rows}, plan.capacity);
  omnisparse::or_throw(omnisparse::copy_plan(copy.view(), plan));
  omnisparse::or_throw(omnisparse::detail::device_status(cudaDeviceSynchronize()));
  return copy;
}

}  // namespace gpu
