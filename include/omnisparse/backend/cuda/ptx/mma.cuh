/// @file
/// The matrix product of one warp, for compute capability 8.0 and newer.
#pragma once

#include <omnisparse/core/dtype.hpp>

#include <type_traits>

namespace omnisparse::ptx {

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {d0..d3}, {a0..a3}, {b0, b1}, {d0..d3};
// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32   {d0..d3}, {a0..a3}, {b0, b1}, {d0..d3};
/// d [16, 8] += a [16, 16] b [16, 8]. Lane l holds of d: rows l / 4 (d0, d1) and l / 4 + 8 (d2,
/// d3), columns 2 (l % 4) + {0, 1}; of a: the same rows (a0, a2 and a1, a3), summed elements
/// 2 (l % 4) + {0, 1} (a0, a1) and 8 more (a2, a3); of b: column l / 4, the same summed elements.
template <class T>
__device__ inline void mma_m16n8k16(float (&d)[4], unsigned const (&a)[4], unsigned b0,
                                    unsigned b1) noexcept {
  static_assert(std::is_same_v<T, bfloat16> || std::is_same_v<T, half>);
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// cvt.rna.tf32.f32 d, x;
/// `x` rounded to tf32, of 10 mantissa bits, as the bits of a float.
__device__ inline unsigned tf32_of(float x) noexcept {
  unsigned d;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(d) : "f"(x));
  return d;
}

// mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {d0..d3}, {a0..a3}, {b0, b1}, {d0..d3};
/// d [16, 8] += a [16, 8] b [8, 8]. Lane l holds d as above; of a: rows l / 4 (a0, a2) and l / 4 +
/// 8 (a1, a3), summed elements l % 4 (a0, a1) and l % 4 + 4 (a2, a3); of b: column l / 4, the same
/// summed elements (b0 and b1).
__device__ inline void mma_m16n8k8(float (&d)[4], unsigned const (&a)[4], unsigned b0,
                                   unsigned b1) noexcept {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace omnisparse::ptx
