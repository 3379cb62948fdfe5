/// @file
/// Rows of a tensor in shared memory, as `load_octet` reads them without bank conflicts.
#pragma once

#include <omnisparse/backend/cuda/collective/octet.cuh>
#include <omnisparse/backend/cuda/ptx/cp_async.cuh>

namespace omnisparse::collective {

/// Elements from one row of D elements to the next: the two rows that eight lanes read at once must
/// lie in different halves of the banks.
template <class T, int D>
inline constexpr int stage_stride = D + (sizeof(T) == 2 ? 32 : 4);

/// Bytes of a stage of `rows` rows.
template <class T, int D>
inline constexpr int stage_bytes(int rows) noexcept {
  return rows * stage_stride<T, D> * static_cast<int>(sizeof(T));
}

/// No row is left out.
struct every_row {
  __device__ constexpr bool operator()(int) const noexcept { return true; }
};

/// The block asks for `Rows` rows of `dim` elements, a multiple of 8: row_of(r) points to row r <
/// count; rows from `count` >= 1 on are zeros, and so are elements from `dim` on, and rows that
/// takes(r) leaves out. Ready after the copies are waited for and a barrier. Everything is written,
/// so that old bits, NaN among them, never reach a product.
template <class T, int D, int Rows, int Threads, class RowOf, class Takes = every_row>
__device__ inline void stage_rows(T* stage, bool vectors, int count, int dim, RowOf const& row_of,
                                  Takes const& takes = {}) noexcept {
  constexpr int each = 16 / static_cast<int>(sizeof(T)), chunks = D / each;
  constexpr int across = Threads / chunks;  // rows that all threads copy at once
  static_assert(Threads % chunks == 0 && Rows % across == 0);
  int const first = static_cast<int>(threadIdx.x) / chunks;
  int const at = static_cast<int>(threadIdx.x) % chunks * each;
  T* const to = stage + first * stage_stride<T, D> + at;
  int const filled = at < dim ? count : 0;
#pragma unroll
  for (int n = 0; n < Rows / across; ++n) {
    int const r = first + n * across;
    T const* const from = row_of(smaller(r, count - 1)) + at;
    bool const taken = r < filled && takes(r);
    T* const place = to + n * across * stage_stride<T, D>;
    if (vectors) {
      ptx::cp_async_16(place, from, taken ? 16 : 0);
    } else {
#pragma unroll
      for (int i = 0; i < each; ++i) place[i] = taken ? from[i] : T{};
    }
  }
}

/// Lane's eight elements of step `step` of row `row` of a stage.
template <int D, class T>
__device__ inline operand_t<T> staged_octet(T const* stage, int row, int step) noexcept {
  int const lane = static_cast<int>(threadIdx.x) % 32;
  return load_octet(stage + row * stage_stride<T, D> + step * 32 + lane % 4 * 8, true);
}

}  // namespace omnisparse::collective
