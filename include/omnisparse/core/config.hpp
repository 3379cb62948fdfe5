/// @file
/// The few macros of the library: device annotation and the opt-in assertion.
#pragma once

#if defined(__CUDACC__)
#  define OMNISPARSE_HD __host__ __device__
#else
/// Marks what runs on the host and, under nvcc, in kernels too: every member of a policy.
#  define OMNISPARSE_HD
#endif

#if defined(OMNISPARSE_ENABLE_ASSERTS)
#  include <cassert>
/// Checks an internal invariant; compiled in only when OMNISPARSE_ENABLE_ASSERTS is defined.
#  define OMNISPARSE_ASSERT(condition) assert(condition)
#else
#  define OMNISPARSE_ASSERT(condition) static_cast<void>(0)
#endif
