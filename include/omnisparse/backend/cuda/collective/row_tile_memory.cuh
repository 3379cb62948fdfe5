/// @file
/// Tiles of rows in shared memory, as the portable products read them without bank conflicts.
#pragma once

#include <omnisparse/backend/cuda/ptx/cp_async.cuh>
#include <omnisparse/backend/cuda/ptx/opaque.cuh>
#include <omnisparse/core/dtype.hpp>
#include <omnisparse/core/math.hpp>

#include <cstdint>
#include <type_traits>

namespace omnisparse::collective {

/// Where the elements of a tile of rows [rows, D] lie, in bytes. A row is D / each chunks of 16
/// bytes. Of 16-bit elements, the chunks of a row are swapped within each 128 bytes by its number,
/// so that ldmatrix meets every bank once; rows of float are 16 bytes apart instead.
template <class T, int D>
struct row_layout {
  static constexpr int each = 16 / static_cast<int>(sizeof(T));
  static constexpr int chunks = D / each;
  static constexpr bool swapped = sizeof(T) == 2;
  static constexpr int row_bytes = D * static_cast<int>(sizeof(T)) + (swapped ? 0 : 16);

  OMNISPARSE_HD static constexpr int offset(int row, int chunk) noexcept {
    return row * row_bytes + (swapped ? chunk ^ row % 8 : chunk) * 16;
  }
  /// The element of a tile at a row and column.
  static __device__ T* at(unsigned char* tile, int row, int column) noexcept {
    return reinterpret_cast<T*>(tile + offset(row, column / each)) + column % each;
  }
};

/// threadIdx.x. What follows from it is computed where it is used: kept in registers over a loop,
/// it would be in the way of the accumulators.
__device__ __forceinline__ int block_thread() noexcept {
  return static_cast<int>(ptx::opaque(threadIdx.x));
}

/// The threads of a block copy `Rows` neighbouring rows of `dim` elements of global memory into a
/// tile, zeros beyond the first `count` rows and beyond `dim`, a multiple of 8. Rows begin at
/// multiples of 16 bytes. Ready after cp_async_wait and a barrier.
template <class T, int D, int Rows, int Threads>
__device__ __forceinline__ void copy_range(unsigned char* tile, T const* first, std::int64_t stride,
                                           int count, int dim) noexcept {
  using layout = row_layout<T, D>;
  constexpr int step = Threads / layout::chunks;
  static_assert(Threads % layout::chunks == 0 && Rows % step == 0);
  int const thread = block_thread(), row = thread / layout::chunks, chunk = thread % layout::chunks;
  T const* from = first + row * stride + chunk * layout::each;
  int const filled = chunk * layout::each < dim ? count : 0;
#pragma unroll
  for (int n = 0; n < Rows / step; ++n) {
    int const r = row + n * step;
    ptx::cp_async_16(tile + layout::offset(r, chunk), from, r < filled ? 16 : 0);
    from += step * stride;
  }
}

/// The same for rows anywhere: row_of(r) is a row in global memory, or null for a row of zeros;
/// `any` is an address that may be read. Where they are not `aligned` to 16 bytes, elements are
/// copied one by one. Each thread writes the same places as in copy_range.
template <class T, int D, int Rows, int Threads, class RowOf>
__device__ __forceinline__ void copy_rows(unsigned char* tile, bool aligned, T const* any, int dim,
                                          RowOf const& row_of) noexcept {
  using layout = row_layout<T, D>;
  constexpr int step = Threads / layout::chunks;
  int const thread = block_thread(), row = thread / layout::chunks, chunk = thread % layout::chunks;
  bool const inside = chunk * layout::each < dim;
  if (aligned) {
#pragma unroll 4
    for (int n = 0; n < Rows / step; ++n) {
      int const r = row + n * step;
      T const* const from = inside ? row_of(r) : nullptr;
      ptx::cp_async_16(tile + layout::offset(r, chunk),
                       from != nullptr ? from + chunk * layout::each : any,
                       from != nullptr ? 16 : 0);
    }
  } else {
#pragma unroll 1
    for (int n = 0; n < Rows / step; ++n) {
      int const r = row + n * step;
      T const* const from = inside ? row_of(r) : nullptr;
      T* const to = reinterpret_cast<T*>(tile + layout::offset(r, chunk));
#pragma unroll
      for (int i = 0; i < layout::each; ++i) {
        to[i] = from != nullptr ? from[chunk * layout::each + i] : T{};
      }
    }
  }
}

/// Does a pair of 16-bit values, or a float, hold infinity or NaN?
template <class T>
__device__ inline bool holds_infinite(unsigned word) noexcept {
  // A full exponent, and only that, carries into the sign bit when its lowest bit is added.
  constexpr unsigned exponent = std::is_same_v<T, float>      ? 0x7f800000u
                                : std::is_same_v<T, bfloat16> ? 0x7f807f80u
                                                              : 0x7c007c00u;
  constexpr unsigned lowest = exponent & ~(exponent << 1);
  constexpr unsigned signs = std::is_same_v<T, float> ? 0x80000000u : 0x80008000u;
  return (((word & exponent) + lowest) & signs) != 0;
}

/// Zeroes what is infinite or NaN among the elements that this thread copied into a tile; says
/// whether there was any.
template <class T, int D, int Rows, int Threads>
__device__ inline bool zero_infinite(unsigned char* tile) noexcept {
  using layout = row_layout<T, D>;
  bool found = false;
#pragma unroll 1
  for (int n = 0; n < Rows * layout::chunks / Threads; ++n) {
    int const e = n * Threads + block_thread();
    auto* const at =
        reinterpret_cast<uint4*>(tile + layout::offset(e / layout::chunks, e % layout::chunks));
    uint4 const words = *at;
    if (!(holds_infinite<T>(words.x) || holds_infinite<T>(words.y) || holds_infinite<T>(words.z) ||
          holds_infinite<T>(words.w))) {
      continue;
    }
    found = true;
    for (int i = 0; i < layout::each; ++i) {
      T& x = reinterpret_cast<T*>(at)[i];
      if (!isfinite(static_cast<float>(x))) x = T{};
    }
  }
  return found;
}

}  // namespace omnisparse::collective
