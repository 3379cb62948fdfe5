/// @file
/// The two products of a decode step: the query heads of one group against a few stored tokens, as
/// register tiles. Lanes are keys, then columns of values, so nothing is summed across lanes, and
/// each key and value is loaded and widened once for up to decode_heads heads.
#pragma once

#include <omnisparse/backend/cpu/pack.hpp>
#include <omnisparse/backend/cpu/packet.hpp>
#include <omnisparse/core/dtype.hpp>
#include <omnisparse/core/math.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#if defined(__SSE2__)
#  include <immintrin.h>
#endif

#if defined(__GNUC__) && !defined(__clang__)
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wignored-attributes"  // vector types as template arguments
#endif

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

/// Stored tokens of one step: their probabilities stay in L1.
inline constexpr int decode_keys = 64;

/// Row length of a step's scores: off a power of two, so that heads do not share cache sets.
template <class A>
inline constexpr int decode_ld = decode_keys + lanes<A>;
static_assert(decode_keys % lanes<float> == 0);

/// Most heads of a register tile, and its packets of columns for so many heads: the accumulators
/// take half of the registers.
inline constexpr int decode_heads = vector_registers / 4;
template <int heads>
inline constexpr int decode_columns = heads * 4 <= vector_registers / 2 ? 4 : 2;

template <int n>
using lane_count = std::integral_constant<int, n>;

/// Elements [0, n) of a row, widened to a packet of n lanes; below, by an instruction or two where
/// the target has them.
template <class T, int n>
inline packet<accumulator_t<T>> load_lanes(T const* row, lane_count<n>) noexcept {
  return load_widened<accumulator_t<T>>(row);
}
#if defined(__AVX512F__)
inline __m512 load_lanes(bfloat16 const* row, lane_count<16>) noexcept {
  __m256i const x = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(row));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
inline __m512 load_lanes(half const* row, lane_count<16>) noexcept {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(row)));
}
#endif
#if defined(__AVX2__)
inline __m256 load_lanes(bfloat16 const* row, lane_count<8>) noexcept {
  __m128i const x = _mm_loadu_si128(reinterpret_cast<__m128i const*>(row));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
#endif
#if defined(__AVX__) && defined(__F16C__)
inline __m256 load_lanes(half const* row, lane_count<8>) noexcept {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(row)));
}
#endif
#if defined(__SSE2__)
inline __m128 load_lanes(bfloat16 const* row, lane_count<4>) noexcept {
  __m128i const x = _mm_loadl_epi64(reinterpret_cast<__m128i const*>(row));
  return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), x));
}
#endif

/// Asks for the cache lines of `bytes` at an address, which may be any.
template <int bytes>
inline void prefetch(std::uintptr_t address) noexcept {
#if defined(__GNUC__)
#  pragma GCC unroll 8
  for (unsigned n = 0; n < unsigned{bytes}; n += 64) {
    // To the second cache: the first one holds the step at hand.
    __builtin_prefetch(reinterpret_cast<void const*>(address + n), 0, 2);
  }
#else
  static_cast<void>(address);
#endif
}

/// scores = q k^T for one tile: q [dim], `group` apart, of `heads` heads; keys [dim], `key_ld`
/// apart, of `columns` packets of tokens; scores [heads], decode_ld apart. As much as it reads is
/// asked for from `next` on.
template <int heads, int columns, class A, class T>
inline void score_tile(A const* q, int group, T const* keys, int key_ld, int dim,
                       std::uintptr_t next, A* scores) noexcept {
  using P = packet<A>;
  constexpr lane_count<lanes<A>> width;
  constexpr int bytes = columns * lanes<A> * int{sizeof(T)};
  P sum[std::size_t{heads}][std::size_t{columns}];
#pragma GCC unroll 8
  for (int h = 0; h < heads; ++h) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) sum[h][c] = simd::pset1<P>(A(0));
  }
  for (int d = 0; d < dim; ++d) {
    P k[std::size_t{columns}];
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) k[c] = load_lanes(keys + c * lanes<A>, width);
    prefetch<bytes>(next);
    next += bytes;
#pragma GCC unroll 8
    for (int h = 0; h < heads; ++h) {
      P const x = simd::pset1<P>(q[h]);
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) sum[h][c] = simd::pmadd(x, k[c], sum[h][c]);
    }
    q += group;
    keys += key_ld;
  }
#pragma GCC unroll 8
  for (int h = 0; h < heads; ++h) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) {
      simd::pstoreu(scores + h * decode_ld<A> + c * lanes<A>, sum[h][c]);
    }
  }
}

/// out += p v for one tile: p [heads], decode_ld apart, of `tokens` tokens; values [tokens], `dim`
/// apart, of `columns` packets; out [heads], `out_ld` apart. `next` as in score_tile.
template <int heads, int columns, class A, class T>
inline void value_tile(A const* p, T const* values, int tokens, int dim, std::uintptr_t next,
                       A* out, int out_ld) noexcept {
  using P = packet<A>;
  constexpr lane_count<lanes<A>> width;
  constexpr int bytes = columns * lanes<A> * int{sizeof(T)};
  P sum[std::size_t{heads}][std::size_t{columns}];
#pragma GCC unroll 8
  for (int h = 0; h < heads; ++h) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) sum[h][c] = simd::ploadu<P>(out + h * out_ld + c * lanes<A>);
  }
  for (int n = 0; n < tokens; ++n) {
    P v[std::size_t{columns}];
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) v[c] = load_lanes(values + c * lanes<A>, width);
    prefetch<bytes>(next);
    next += bytes;
#pragma GCC unroll 8
    for (int h = 0; h < heads; ++h) {
      P const x = simd::pset1<P>(p[h * decode_ld<A>]);
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) sum[h][c] = simd::pmadd(x, v[c], sum[h][c]);
    }
    ++p;
    values += dim;
  }
#pragma GCC unroll 8
  for (int h = 0; h < heads; ++h) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) simd::pstoreu(out + h * out_ld + c * lanes<A>, sum[h][c]);
  }
}

/// Calls tile(first, heads) for blocks of at most decode_heads heads; `heads` is a constant.
template <int heads = decode_heads, class Tile>
inline void for_heads(int first, int count, Tile const& tile) noexcept {
  if (count > heads) {
    int const blocks = ceil_div(count, decode_heads), some = ceil_div(count, blocks);
    for_heads(first, some, tile);
    for_heads(first + some, count - some, tile);
  } else if (count == heads) {
    tile(first, std::integral_constant<int, heads>{});
  } else if constexpr (heads > 1) {
    for_heads<heads - 1>(first, count, tile);
  }
}

/// Calls columns(first, packets) for [0, size) in tiles of `wide` packets, then in single ones, the
/// last of which may reach beyond size.
template <class A, int wide, class Columns>
inline void for_columns(int size, Columns const& columns) noexcept {
  int const end = round_up(size, lanes<A>);
  int at = 0;
  for (; at + wide * lanes<A> <= end; at += wide * lanes<A>) {
    columns(at, std::integral_constant<int, wide>{});
  }
  for (; at < end; at += lanes<A>) columns(at, std::integral_constant<int, 1>{});
}

/// Scores of `tokens` <= decode_keys tokens: q [dim, group], keys [dim], `key_ld` apart. Reads
/// whole packets, and writes as many scores: those from `tokens` on mean nothing.
template <class A, class T>
void score_keys(A const* q, int group, T const* keys, int key_ld, int tokens, int dim,
                std::uintptr_t next, A* scores) noexcept {
  for_heads(0, group, [&](int h, auto heads) {
    for_columns<A, decode_columns<heads>>(tokens, [&](int n, auto columns) {
      score_tile<heads, columns>(q + h, group, keys + n, key_ld, dim,
                                 next + sizeof(T) * static_cast<std::size_t>(n * dim),
                                 scores + h * decode_ld<A> + n);
    });
  });
}

/// out [heads, out_ld] += p v: p [heads], decode_ld apart, values [tokens, dim]. Reads whole
/// packets of each value row; columns of `out` from dim on mean nothing.
template <class A, class T>
void add_values(A const* p, int count, T const* values, int tokens, int dim, std::uintptr_t next,
                A* out, int out_ld) noexcept {
  for_heads(0, count, [&](int h, auto heads) {
    for_columns<A, decode_columns<heads>>(dim, [&](int d, auto columns) {
      value_tile<heads, columns>(p + h * decode_ld<A>, values + d, tokens, dim,
                                 next + sizeof(T) * static_cast<std::size_t>(d * tokens),
                                 out + h * out_ld + d, out_ld);
    });
  });
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET

#if defined(__GNUC__) && !defined(__clang__)
#  pragma GCC diagnostic pop
#endif
