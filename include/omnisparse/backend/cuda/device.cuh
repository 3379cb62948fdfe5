/// @file
/// What the current device can do. Asks the runtime, never waits for the device.
#pragma once

#include <omnisparse/backend/cuda/backend.cuh>

namespace omnisparse::launch {

/// Compute capability of the current device, as major * 10 + minor, and its multiprocessors.
struct device_traits {
  int architecture = 0;
  int multiprocessors = 0;
};

/// Reads the traits of the current device; refuses where there is none, or one older than 8.0.
inline status read_device(device_traits& traits) noexcept {
  int id = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&id);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, id);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, id);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&traits.multiprocessors, cudaDevAttrMultiProcessorCount, id);
  }
  if (error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return {status_code::device_error,
            "omnisparse: the CUDA backend found no usable GPU: see status::device_error, or use "
            "backend::cpu",
            static_cast<int>(error)};
  }
  traits.architecture = major * 10 + minor;
  if (traits.architecture < 80) {
    return {status_code::unsupported,
            "omnisparse: the CUDA backend needs a GPU of compute capability 8.0 or newer: use "
            "backend::cpu"};
  }
  return {};
}

}  // namespace omnisparse::launch
