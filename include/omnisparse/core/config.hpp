/// @file
/// The few macros of the library: device annotation, the opt-in assertion, the target's name.
#pragma once

#if defined(__CUDACC__)
#  define OMNISPARSE_HD __host__ __device__
#else
/// Marks what runs on the host and, under nvcc, in kernels too: every member of a policy.
#  define OMNISPARSE_HD
#endif

// One word of the target's name each; all but the first may be nothing.
#if defined(__AVX512F__)
#  define OMNISPARSE_TARGET_LEVEL avx512
#elif defined(__AVX2__)
#  define OMNISPARSE_TARGET_LEVEL avx2
#elif defined(__AVX__)
#  define OMNISPARSE_TARGET_LEVEL avx
#elif defined(__SSE4_2__)
#  define OMNISPARSE_TARGET_LEVEL sse42
#elif defined(__SSE4_1__)
#  define OMNISPARSE_TARGET_LEVEL sse41
#elif defined(__SSSE3__)
#  define OMNISPARSE_TARGET_LEVEL ssse3
#elif defined(__SSE3__)
#  define OMNISPARSE_TARGET_LEVEL sse3
#elif defined(__SSE2__)
#  define OMNISPARSE_TARGET_LEVEL sse2
#elif defined(__ARM_FEATURE_SVE)
#  define OMNISPARSE_TARGET_LEVEL sve
#elif defined(__ARM_NEON)
#  define OMNISPARSE_TARGET_LEVEL neon
#else
#  define OMNISPARSE_TARGET_LEVEL plain
#endif
#if defined(__AVX512FP16__)
#  define OMNISPARSE_TARGET_WIDE _fp16
#elif defined(__AVX512VBMI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#  define OMNISPARSE_TARGET_WIDE _vbmi
#elif defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#  define OMNISPARSE_TARGET_WIDE _dq_bw_vl
#elif defined(__AVX512BW__)
#  define OMNISPARSE_TARGET_WIDE _bw
#elif defined(__AVX512DQ__) && defined(__AVX512VL__)
#  define OMNISPARSE_TARGET_WIDE _dq_vl
#elif defined(__AVX512DQ__)
#  define OMNISPARSE_TARGET_WIDE _dq
#elif defined(__AVX512VL__)
#  define OMNISPARSE_TARGET_WIDE _vl
#else
#  define OMNISPARSE_TARGET_WIDE
#endif
#if defined(__FMA__) && defined(__F16C__)
#  define OMNISPARSE_TARGET_FUSED _fma_f16c
#elif defined(__FMA__)
#  define OMNISPARSE_TARGET_FUSED _fma
#elif defined(__F16C__)
#  define OMNISPARSE_TARGET_FUSED _f16c
#else
#  define OMNISPARSE_TARGET_FUSED
#endif
#if defined(__BMI2__) && defined(__LZCNT__)
#  define OMNISPARSE_TARGET_BITS _bmi2_lzcnt
#elif defined(__BMI2__)
#  define OMNISPARSE_TARGET_BITS _bmi2
#elif defined(__BMI__)
#  define OMNISPARSE_TARGET_BITS _bmi
#else
#  define OMNISPARSE_TARGET_BITS
#endif
#if defined(EIGEN_DONT_VECTORIZE)
#  define OMNISPARSE_TARGET_EIGEN _scalar
#else
#  define OMNISPARSE_TARGET_EIGEN
#endif
#if defined(_OPENMP)
#  define OMNISPARSE_TARGET_THREADS _openmp
#else
#  define OMNISPARSE_TARGET_THREADS
#endif
#if __FINITE_MATH_ONLY__
#  define OMNISPARSE_TARGET_MATH _finite
#else
#  define OMNISPARSE_TARGET_MATH
#endif
#if defined(OMNISPARSE_ENABLE_ASSERTS)
#  define OMNISPARSE_TARGET_ASSERTS _asserts
#else
#  define OMNISPARSE_TARGET_ASSERTS
#endif
#define OMNISPARSE_TARGET_JOIN_(a, b, c, d, e, f, g, h) a##b##c##d##e##f##g##h
#define OMNISPARSE_TARGET_JOIN(a, b, c, d, e, f, g, h) \
  OMNISPARSE_TARGET_JOIN_(a, b, c, d, e, f, g, h)
/// The name of what a translation unit is compiled for: instruction sets, threads, what else
/// changes the code or the layout of workspaces. All that depends on it is in an inline namespace
/// of this name, the tags of the CPU backends too, so that optimised units of unlike flags in one
/// program never run each other's code; units that nvcc compiles must have the same flags. Views,
/// plans, policies, shapes and status are the same types in all of them.
#define OMNISPARSE_TARGET                                                                          \
  OMNISPARSE_TARGET_JOIN(OMNISPARSE_TARGET_LEVEL, OMNISPARSE_TARGET_WIDE, OMNISPARSE_TARGET_FUSED, \
                         OMNISPARSE_TARGET_BITS, OMNISPARSE_TARGET_EIGEN,                          \
                         OMNISPARSE_TARGET_THREADS, OMNISPARSE_TARGET_MATH,                        \
                         OMNISPARSE_TARGET_ASSERTS)

#if defined(OMNISPARSE_ENABLE_ASSERTS)
#  include <cassert>
/// Checks an internal invariant; compiled in only when OMNISPARSE_ENABLE_ASSERTS is defined.
#  define OMNISPARSE_ASSERT(condition) assert(condition)
#else
#  define OMNISPARSE_ASSERT(condition) static_cast<void>(0)
#endif
