/// @file
/// The vector vocabulary of the CPU kernels, on Eigen's packet layer: one source for SSE, AVX2,
/// AVX-512 and NEON, and plain scalars where Eigen does not vectorise.
#pragma once

#include <omnisparse/core/softmax_scale.hpp>

// Where it makes AVX-512, g++ 12 takes its own intrinsics' undefined values for mistakes.
#if defined(__GNUC__) && !defined(__clang__)
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wuninitialized"
#  pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <Eigen/Core>
#if defined(__GNUC__) && !defined(__clang__)
#  pragma GCC diagnostic pop
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#if defined(__GNUC__) && !defined(__clang__)
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wignored-attributes"  // vector types as template arguments
#endif

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

namespace simd = Eigen::internal;

/// The widest vector of A that the target has.
template <class A>
using packet = typename simd::packet_traits<A>::type;

/// Elements of a packet of A.
template <class A>
inline constexpr int lanes = simd::unpacket_traits<packet<A>>::size;

/// As many packets of A as a packet has lanes: what registers can transpose.
template <class A>
using packet_block = simd::PacketBlock<packet<A>, std::size_t{lanes<A>}>;

/// The register tile of both products: `block_rows` rows by two packets of accumulators, as many as
/// the vector registers hold beside the operands.
inline constexpr int vector_registers =
#if defined(__AVX512F__) || defined(__aarch64__)
    32;
#else
    16;
#endif
inline constexpr int block_rows = vector_registers == 32 ? 12 : 6;

/// Keys of a panel and columns of a value strip: the two packets of the register tile.
template <class A>
inline constexpr int strip = 2 * lanes<A>;

/// Scores are kept in log2 units, so that exponentials are powers of 2.
template <class A>
inline constexpr A log2_e = A(1.44269504088896340736);
template <class A>
inline constexpr A ln_2 = A(0.693147180559945309417);

/// The factor on q that makes a dot product a score: log2(e) times the softmax scale.
template <class A>
inline A score_scale(softmax_scale scale, int dim) noexcept {
  return scale.value > 0 ? log2_e<A> * static_cast<A>(scale.value)
                         : log2_e<A> / std::sqrt(static_cast<A>(dim));
}

/// Is this score_scale too small to be held to full precision? Rows are finished exactly then.
template <class A>
inline bool is_coarse(A scale) noexcept {
  return scale < std::numeric_limits<A>::min();
}

/// Lets no flag reorder what made `x` with what is made of it. No instruction.
template <class P>
inline void hold(P& x) noexcept {
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
  asm("" : "+v"(x));
#elif defined(__GNUC__) && defined(__aarch64__)
  asm("" : "+w"(x));
#else
  static_cast<void>(x);
#endif
}

/// 2^x for x <= 0, within 2 ulp; exactly 0 from about 2^-127 down, so for -inf too. NaN: NaN.
template <class A>
inline packet<A> exp2_of(packet<A> x) noexcept {
  if constexpr (std::is_same_v<A, float> && (lanes<A> > 1)) {
    using P = packet<A>;
    using I = typename simd::unpacket_traits<P>::integer_packet;
    // Adding 1.5 * 2^23 rounds to an integer, which the low bits then hold; 127 biases it to be an
    // exponent.
    P const round = simd::pset1<P>(12582912.f + 127.f);
    P const low = simd::pmax(x, simd::pset1<P>(-127.f));
    P shifted = simd::padd(low, round);
    hold(shifted);
    P whole = simd::psub(shifted, round);
    hold(whole);
    P const f = simd::psub(low, whole);
    P y = simd::pset1<P>(0.001326472731307149f);  // minimax on [-1/2, 1/2], relative error 1e-7
    y = simd::pmadd(y, f, simd::pset1<P>(0.009671512991189957f));
    y = simd::pmadd(y, f, simd::pset1<P>(0.05550733581185341f));
    y = simd::pmadd(y, f, simd::pset1<P>(0.24022242426872253f));
    y = simd::pmadd(y, f, simd::pset1<P>(0.6931470036506653f));
    y = simd::pmadd(y, f, simd::pset1<P>(1.f));
    I const exponent = simd::plogical_shift_left<23>(simd::preinterpret<I>(shifted));
    return simd::pmul(y, simd::preinterpret<P>(exponent));
  } else if constexpr (lanes<A> > 1) {
    using P = packet<A>;
    P const y = simd::pexp(simd::pmul(x, simd::pset1<P>(ln_2<A>)));
    return simd::pselect(simd::pcmp_lt(x, simd::pset1<P>(A(-1000))), simd::pset1<P>(A(0)), y);
  } else {
    return std::exp2(x);
  }
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET

#if defined(__GNUC__) && !defined(__clang__)
#  pragma GCC diagnostic pop
#endif
