/// @file
/// Matrices from shared memory into the registers of a warp, compute capability 7.5 and newer.
#pragma once

#include <cstdint>

namespace omnisparse::ptx {

/// The address of something in shared memory, within it.
__device__ inline std::uint32_t shared_offset(void const* p) noexcept {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// ldmatrix.sync.aligned.m8n8.x4.shared.b16 {d0..d3}, [from];
/// Four 8 x 8 matrices of 16-bit values. Lane l gives the address of row l % 8 of matrix l / 8, and
/// receives of each matrix elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
__device__ inline void ldmatrix_x4(unsigned (&d)[4], std::uint32_t from) noexcept {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(from));
}

// ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {d0..d3}, [from];
/// The same, each matrix transposed: lane l receives elements l / 4 of rows 2 (l % 4) and
/// 2 (l % 4) + 1.
__device__ inline void ldmatrix_x4_transposed(unsigned (&d)[4], std::uint32_t from) noexcept {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(from));
}

}  // namespace omnisparse::ptx
