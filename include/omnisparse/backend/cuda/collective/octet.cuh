/// @file
/// Rows of 16-bit and float tensors as operands of mma.sync, loaded in runs of eight elements.
///
/// A product may sum in any order, as long as both sides agree. In each step of 32 elements, lane l
/// holds elements 8 (l % 4) .. 8 (l % 4) + 7 of its rows: one 16-byte load feeds two instructions,
/// from global or shared memory, and no ldmatrix is needed.
#pragma once

#include <omnisparse/backend/cuda/ptx/mma.cuh>
#include <omnisparse/backend/cuda/ptx/narrow.cuh>
#include <omnisparse/core/math.hpp>
#include <omnisparse/core/tensor_view.hpp>

#include <cstdint>
#include <type_traits>

namespace omnisparse::collective {

/// The type in which a T is multiplied: half in half, all others in bfloat16.
template <class T>
using product_t = std::conditional_t<std::is_same_v<T, half>, half, bfloat16>;

/// How many of them stand for one T: a float is split in a leading and a trailing bfloat16, which
/// keeps 16 bits of it.
template <class T>
inline constexpr int product_parts = std::is_same_v<T, float> ? 2 : 1;

/// Eight neighbouring elements of a row, each the sum of `Parts` numbers of type P, in pairs.
template <class P, int Parts>
struct octet {
  unsigned part[Parts][4];
};

template <class T>
using operand_t = octet<product_t<T>, product_parts<T>>;

/// Two numbers narrowed into one register, the first in its low half.
template <class P>
__device__ inline unsigned narrow(float x, float y) noexcept {
  return ptx::pair_of<P>(x, y);
}

/// The two numbers of a register.
template <class P>
__device__ inline float2 widen(unsigned pair) noexcept {
  return {ptx::low_of<P>(pair), ptx::high_of<P>(pair)};
}

/// Two numbers as leading and trailing parts.
template <class P>
__device__ inline void split(float x, float y, unsigned& leading, unsigned& trailing) noexcept {
  leading = narrow<P>(x, y);
  float2 const kept = widen<P>(leading);
  trailing = narrow<P>(x - kept.x, y - kept.y);
}

/// May every row of the view be read 16 bytes at a time?
template <class T>
__device__ inline bool has_vector_rows(tensor_view<T, device> const& x) noexcept {
  constexpr std::int64_t each = 16 / sizeof(T);
  return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && x.strides[0] % each == 0 &&
         x.strides[1] % each == 0 && x.strides[2] % each == 0;
}

/// N elements widened, in one to a few loads where `vectors`.
template <int N, class T>
__device__ inline void load_run(T const* from, bool vectors, float (&x)[N]) noexcept {
  constexpr int bytes = N * static_cast<int>(sizeof(T));
  static_assert(bytes == 4 || bytes == 8 || bytes % 16 == 0);
  using load =
      std::conditional_t<bytes == 4, unsigned, std::conditional_t<bytes == 8, uint2, uint4>>;
  if (!vectors) {
#pragma unroll
    for (int n = 0; n < N; ++n) x[n] = static_cast<float>(from[n]);
    return;
  }
  load words[bytes / sizeof(load)];
#pragma unroll
  for (unsigned n = 0; n < bytes / sizeof(load); ++n) {
    words[n] = reinterpret_cast<load const*>(from)[n];
  }
  auto const* const pairs = reinterpret_cast<unsigned const*>(words);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if constexpr (sizeof(T) == 4) {
      x[n] = __uint_as_float(pairs[n]);
    } else {
      float2 const two = widen<T>(pairs[n / 2]);
      x[n] = n % 2 == 0 ? two.x : two.y;
    }
  }
}

/// Eight elements from global or shared memory.
template <class T>
__device__ inline operand_t<T> load_octet(T const* from, bool vectors) noexcept {
  operand_t<T> o;
  if constexpr (std::is_same_v<T, float>) {
    float x[8];
    load_run(from, vectors, x);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      split<bfloat16>(x[2 * n], x[2 * n + 1], o.part[0][n], o.part[1][n]);
    }
  } else if (vectors) {
    uint4 const words = *reinterpret_cast<uint4 const*>(from);
    o.part[0][0] = words.x;
    o.part[0][1] = words.y;
    o.part[0][2] = words.z;
    o.part[0][3] = words.w;
  } else {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      o.part[0][n] = from[2 * n].bits | static_cast<unsigned>(from[2 * n + 1].bits) << 16;
    }
  }
  return o;
}

/// Eight elements of rows l / 4 and l / 4 + 8 of a left operand, in the order of the registers of
/// the two instructions that they feed.
template <class P, int Parts>
struct row_pair {
  unsigned part[Parts][2][4];
};

template <class P, int Parts>
__device__ inline row_pair<P, Parts> pair_rows(octet<P, Parts> const& low,
                                               octet<P, Parts> const& high) noexcept {
  row_pair<P, Parts> r;
#pragma unroll
  for (int p = 0; p < Parts; ++p) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      r.part[p][n / 2][n % 2 * 2] = low.part[p][n];
      r.part[p][n / 2][n % 2 * 2 + 1] = high.part[p][n];
    }
  }
  return r;
}

/// The same rows, for operands that many products use: an operation that changes nothing, which the
/// compiler does not know, puts them where the instruction wants them once, and not by moves before
/// each use. Grids are one-dimensional here: gridDim.z is 1.
template <class P, int Parts>
__device__ inline row_pair<P, Parts> settled(row_pair<P, Parts> x) noexcept {
  unsigned const nothing = gridDim.z - 1u;
#pragma unroll
  for (int n = 0; n < 8 * Parts; ++n) x.part[n / 8][n / 4 % 2][n % 4] ^= nothing;
  return x;
}

/// The squares of a pair of rows, in bfloat16, which has their range.
template <class P, int Parts>
__device__ inline row_pair<bfloat16, 1> squares_of(row_pair<P, Parts> const& x) noexcept {
  row_pair<bfloat16, 1> y;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    if constexpr (std::is_same_v<P, bfloat16> && Parts == 1) {
      y.part[0][n / 4][n % 4] = ptx::square_pair(x.part[0][n / 4][n % 4]);
    } else {
      float2 sum = widen<P>(x.part[0][n / 4][n % 4]);
#pragma unroll
      for (int p = 1; p < Parts; ++p) {
        float2 const part = widen<P>(x.part[p][n / 4][n % 4]);
        sum.x += part.x;
        sum.y += part.y;
      }
      y.part[0][n / 4][n % 4] = narrow<bfloat16>(sum.x * sum.x, sum.y * sum.y);
    }
  }
  return y;
}

/// The sum of the squares of eight elements.
template <class P, int Parts>
__device__ inline float square_sum(octet<P, Parts> const& x) noexcept {
  float total = 0.f;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    float2 sum = widen<P>(x.part[0][n]);
#pragma unroll
    for (int p = 1; p < Parts; ++p) {
      float2 const part = widen<P>(x.part[p][n]);
      sum.x += part.x;
      sum.y += part.y;
    }
    total += sum.x * sum.x + sum.y * sum.y;
  }
  return total;
}

/// d [16, 8] += a [16, 32] b [8, 32]^T: `a` holds rows l / 4 and l / 4 + 8, `b` row l / 4. The
/// product of two trailing parts is left out.
template <class P, int PartsA, int PartsB>
__device__ inline void multiply(float (&d)[4], row_pair<P, PartsA> const& a,
                                octet<P, PartsB> const& b) noexcept {
#pragma unroll
  for (int step = 0; step < 2; ++step) {
#pragma unroll
    for (int pa = 0; pa < PartsA; ++pa) {
#pragma unroll
      for (int pb = 0; pb < PartsB; ++pb) {
        if (pa + pb >= larger(PartsA, PartsB)) continue;
        ptx::mma_m16n8k16<P>(d, a.part[pa][step], b.part[pb][2 * step], b.part[pb][2 * step + 1]);
      }
    }
  }
}

}  // namespace omnisparse::collective
