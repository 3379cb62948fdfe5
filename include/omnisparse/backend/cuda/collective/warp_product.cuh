/// @file
/// The two products of attention as one warp multiplies them: scores = q k^T, and o += p v.
#pragma once

#include <omnisparse/backend/cuda/collective/row_tile_memory.cuh>
#include <omnisparse/backend/cuda/ptx/ldmatrix.cuh>
#include <omnisparse/backend/cuda/ptx/mma.cuh>
#include <omnisparse/backend/cuda/ptx/narrow.cuh>

namespace omnisparse::collective {

/// A warp's products of `Rows` rows with key tiles of `Keys` keys; tiles as row_layout has them.
/// Accumulators [Rows / 16][columns / 8][4]: register e of 4 belongs to row lane / 4 + 8 (e / 2)
/// of its 16, and to column 2 (lane % 4) + e % 2 of its 8.
template <class T, int D, int Rows, int Keys>
struct warp_product {
  static_assert(sizeof(T) == 2 && Rows % 16 == 0 && Keys % 16 == 0 && D % 16 == 0);
  using layout = row_layout<T, D>;
  static constexpr int across = Rows / 16;

  /// s = q k^T for this warp's rows of q.
  static __device__ __forceinline__ void scores(float (&s)[across][Keys / 8][4],
                                                unsigned char const* q,
                                                unsigned char const* k) noexcept {
    int const thread = block_thread(), lane = thread % 32;
    std::uint32_t const q_at = first_chunk(q, thread / 32 * Rows + lane % 16, lane / 16);
    std::uint32_t const k_at = first_chunk(k, lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int m = 0; m < across; ++m) {
#pragma unroll
      for (int n = 0; n < Keys / 8; ++n) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.f;
    }
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      unsigned a[across][4];
#pragma unroll
      for (int m = 0; m < across; ++m) {
        ptx::ldmatrix_x4(a[m], (q_at ^ 32u * step) + 16 * m * layout::row_bytes);
      }
#pragma unroll
      for (int n = 0; n < Keys / 16; ++n) {
        unsigned b[4];
        ptx::ldmatrix_x4(b, (k_at ^ 32u * step) + 16 * n * layout::row_bytes);
#pragma unroll
        for (int m = 0; m < across; ++m) {
          ptx::mma_m16n8k16<T>(s[m][2 * n], a[m], b[0], b[1]);
          ptx::mma_m16n8k16<T>(s[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  /// o += p v. An accumulator's registers are a left operand's, narrowed in pairs.
  static __device__ __forceinline__ void values(float (&o)[across][D / 8][4],
                                                float const (&p)[across][Keys / 8][4],
                                                unsigned char const* v) noexcept {
    int const lane = block_thread() % 32;
    std::uint32_t const v_at = first_chunk(v, lane % 16, lane / 16);
#pragma unroll
    for (int step = 0; step < Keys / 16; ++step) {
      unsigned a[across][4];
#pragma unroll
      for (int m = 0; m < across; ++m) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          float const* const pair = p[m][2 * step + r / 2] + r % 2 * 2;
          a[m][r] = ptx::pair_of<T>(pair[0], pair[1]);
        }
      }
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        unsigned b[4];
        ptx::ldmatrix_x4_transposed(b, (v_at ^ 32u * n) + 16 * step * layout::row_bytes);
#pragma unroll
        for (int m = 0; m < across; ++m) {
          ptx::mma_m16n8k16<T>(o[m][2 * n], a[m], b[0], b[1]);
          ptx::mma_m16n8k16<T>(o[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

 private:
  // Where a lane's matrices begin. The next pair of chunks is the address xor 32, and so on,
  // because tiles are aligned to 1024 bytes.
  static __device__ std::uint32_t first_chunk(unsigned char const* tile, int row,
                                              int chunk) noexcept {
    return ptx::shared_offset(tile) + static_cast<std::uint32_t>(layout::offset(row, chunk));
  }
};

/// A float as the sum of two tf32 numbers: 21 bits of it.
struct split_float {
  unsigned leading, trailing;

  static __device__ split_float of(float x) noexcept {
    unsigned const leading = ptx::tf32_of(x);
    return {leading, ptx::tf32_of(x - __uint_as_float(leading))};
  }
};

/// Float: three tf32 products stand for one; what they leave out is 2^-22 of a factor.
template <int D, int Rows, int Keys>
struct warp_product<float, D, Rows, Keys> {
  static_assert(Rows == 16 && Keys % 8 == 0 && D % 8 == 0);
  using layout = row_layout<float, D>;
  static constexpr int across = 1;

  static __device__ __forceinline__ void scores(float (&s)[across][Keys / 8][4],
                                                unsigned char const* q,
                                                unsigned char const* k) noexcept {
    int const lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, column = lane % 4;
    int const first_row = static_cast<int>(threadIdx.x) / 32 * Rows;
#pragma unroll
    for (int n = 0; n < Keys / 8; ++n) s[0][n][0] = s[0][n][1] = s[0][n][2] = s[0][n][3] = 0.f;
#pragma unroll 4
    for (int step = 0; step < D / 8; ++step) {
      float const a[4] = {element(q, first_row + row, 8 * step + column),
                          element(q, first_row + row + 8, 8 * step + column),
                          element(q, first_row + row, 8 * step + column + 4),
                          element(q, first_row + row + 8, 8 * step + column + 4)};
      unsigned leading[4], trailing[4];
      split(leading, trailing, a);
#pragma unroll
      for (int n = 0; n < Keys / 8; ++n) {
        multiply(s[0][n], leading, trailing, element(k, 8 * n + row, 8 * step + column),
                 element(k, 8 * n + row, 8 * step + column + 4));
      }
    }
  }

  /// Keys 2 (lane % 4) and 2 (lane % 4) + 1 of each 8 stand for summed elements lane % 4 and
  /// lane % 4 + 4: then an accumulator's registers are a left operand's.
  static __device__ __forceinline__ void values(float (&o)[across][D / 8][4],
                                                float const (&p)[across][Keys / 8][4],
                                                unsigned char const* v) noexcept {
    int const lane = static_cast<int>(threadIdx.x) % 32, row = lane % 4 * 2, column = lane / 4;
#pragma unroll
    for (int step = 0; step < Keys / 8; ++step) {
      float const a[4] = {p[0][step][0], p[0][step][2], p[0][step][1], p[0][step][3]};
      unsigned leading[4], trailing[4];
      split(leading, trailing, a);
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        multiply(o[0][n], leading, trailing, element(v, 8 * step + row, 8 * n + column),
                 element(v, 8 * step + row + 1, 8 * n + column));
      }
    }
  }

 private:
  static __device__ float element(unsigned char const* tile, int row, int column) noexcept {
    return *reinterpret_cast<float const*>(tile + row * layout::row_bytes + column * 4);
  }
  static __device__ void split(unsigned (&leading)[4], unsigned (&trailing)[4],
                               float const (&a)[4]) noexcept {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      split_float const x = split_float::of(a[r]);
      leading[r] = x.leading;
      trailing[r] = x.trailing;
    }
  }
  static __device__ void multiply(float (&d)[4], unsigned const (&leading)[4],
                                  unsigned const (&trailing)[4], float b0, float b1) noexcept {
    split_float const x = split_float::of(b0), y = split_float::of(b1);
    // The tensor cores cut off what they add: only few terms meet there, the rest is rounded.
    float few[4] = {};
    ptx::mma_m16n8k8(few, trailing, x.leading, y.leading);
    ptx::mma_m16n8k8(few, leading, x.trailing, y.trailing);
    ptx::mma_m16n8k8(few, leading, x.leading, y.leading);
#pragma unroll
    for (int e = 0; e < 4; ++e) d[e] += few[e];
  }
};

}  // namespace omnisparse::collective
