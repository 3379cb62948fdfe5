/// @file
/// Tensors as the copy engine sees them. Links the CUDA runtime alone: the encoder is asked for at
/// run time.
#pragma once

#include <omnisparse/backend/cuda/backend.cuh>
#include <omnisparse/core/dtype.hpp>
#include <omnisparse/core/tensor_view.hpp>

#include <cuda.h>
#include <cudaTypedefs.h>

#include <cstdint>
#include <type_traits>

namespace omnisparse::launch {

/// The driver's encoder of tensor maps; null where the driver has none.
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() noexcept {
  static PFN_cuTensorMapEncodeTiled_v12000 const encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaError_t const error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &found);
#else
    cudaError_t const error =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
      static_cast<void>(cudaGetLastError());
      function = nullptr;
    }
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encoder;
}

/// Can the copy engine read this view of [batch, head, token, D]? Base and strides on 16 bytes;
/// strides positive where there is more than one index.
template <class T>
bool is_copyable(tensor_view<T, device> const& view) noexcept {
  if (reinterpret_cast<std::uintptr_t>(view.data) % 16 != 0) return false;
  for (int d = 0; d < 3; ++d) {
    std::int64_t const bytes = view.stride(d) * std::int64_t{sizeof(T)};
    if (view.extent(d) > 1 && (bytes <= 0 || bytes % 16 != 0 || bytes >= std::int64_t{1} << 40)) {
      return false;
    }
  }
  return true;
}

/// The map of a copyable view of [batch, head, token, D], by boxes of 64 values of `rows` tokens,
/// swizzled by 128 bytes. Views without elements have no map: it is left as it was.
template <class T>
status encode_map(CUtensorMap& map, tensor_view<T, device> const& view, int rows) noexcept {
  if (view.size() == 0) return {};
  auto const stride = [&](int d) {  // the stride of a single index means nothing
    return view.extent(d) > 1 ? static_cast<cuuint64_t>(view.stride(d)) * sizeof(T)
                              : static_cast<cuuint64_t>(view.extent(3)) * sizeof(T);
  };
  auto const extent = [&](int d) { return static_cast<cuuint64_t>(view.extent(d)); };
  cuuint64_t const extents[4] = {extent(3), extent(2), extent(1), extent(0)};
  cuuint64_t const strides[3] = {stride(2), stride(1), stride(0)};
  cuuint32_t const box[4] = {64, static_cast<cuuint32_t>(rows), 1, 1};
  cuuint32_t const steps[4] = {1, 1, 1, 1};
  auto const type = std::is_same_v<std::remove_const_t<T>, bfloat16>
                        ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                        : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  CUresult const result = tensor_map_encoder()(
      &map, type, 4, const_cast<void*>(static_cast<void const*>(view.data)), extents, strides, box,
      steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return {};
  return {status_code::device_error,
          "omnisparse: the driver refused a tensor map of q, k, v or out: see "
          "status::device_error, or ask for the portable path",
          static_cast<int>(result)};
}

}  // namespace omnisparse::launch
