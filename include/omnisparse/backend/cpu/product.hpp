/// @file
/// The two products of attention as register tiles: block_rows rows by one strip of columns.
#pragma once

#include <omnisparse/backend/cpu/packet.hpp>

#include <cstddef>

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

/// S = q k^T for one block of rows and `panels` neighbouring panels of keys: q [dim][block_rows],
/// panels [dim][lanes] each, out block_rows rows `ld` apart. 2 block_rows lanes dim FLOPs a panel.
template <int panels = 2, class A>
inline void multiply_keys(A const* q, A const* panel, int dim, A* out, int ld) noexcept {
  using P = packet<A>;
  P sum[block_rows][std::size_t{panels}];
#pragma GCC unroll 16
  for (int r = 0; r < block_rows; ++r) {
    sum[r][0] = simd::pset1<P>(A(0));
    if constexpr (panels == 2) sum[r][1] = simd::pset1<P>(A(0));
  }
  A const* const next = panel + std::ptrdiff_t{lanes<A>} * dim;
  for (int d = 0; d < dim; ++d, q += block_rows) {
    P const k0 = simd::ploadu<P>(panel + d * lanes<A>);
    P const k1 = panels == 2 ? simd::ploadu<P>(next + d * lanes<A>) : k0;
#pragma GCC unroll 16
    for (int r = 0; r < block_rows; ++r) {
      P const x = simd::pset1<P>(q[r]);
      sum[r][0] = simd::pmadd(x, k0, sum[r][0]);
      if constexpr (panels == 2) sum[r][1] = simd::pmadd(x, k1, sum[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < block_rows; ++r) {
    simd::pstoreu(out + r * ld, sum[r][0]);
    if constexpr (panels == 2) simd::pstoreu(out + r * ld + lanes<A>, sum[r][1]);
  }
}

/// O += P v for one block of rows and one strip of columns: p block_rows rows `p_ld` apart, v
/// `keys` rows `v_ld` apart, out block_rows rows `v_ld` apart.
template <class A, int p_ld>
inline void multiply_values(A const* p, A const* v, int keys, A* out, int v_ld) noexcept {
  using P = packet<A>;
  P sum[block_rows][2];
#pragma GCC unroll 16
  for (int r = 0; r < block_rows; ++r) {
    sum[r][0] = simd::ploadu<P>(out + r * v_ld);
    sum[r][1] = simd::ploadu<P>(out + r * v_ld + lanes<A>);
  }
  for (int n = 0; n < keys; ++n, ++p, v += v_ld) {
    P const v0 = simd::ploadu<P>(v);
    P const v1 = simd::ploadu<P>(v + lanes<A>);
#pragma GCC unroll 16
    for (int r = 0; r < block_rows; ++r) {
      P const x = simd::pset1<P>(p[r * p_ld]);
      sum[r][0] = simd::pmadd(x, v0, sum[r][0]);
      sum[r][1] = simd::pmadd(x, v1, sum[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < block_rows; ++r) {
    simd::pstoreu(out + r * v_ld, sum[r][0]);
    simd::pstoreu(out + r * v_ld + lanes<A>, sum[r][1]);
  }
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
