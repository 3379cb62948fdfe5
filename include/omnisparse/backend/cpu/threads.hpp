/// @file
/// Threads by OpenMP where found, one thread elsewhere. Results never depend on their number.
#pragma once

#include <omnisparse/core/config.hpp>

#if defined(_OPENMP)
#  include <omp.h>
#endif

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

/// Threads that a backend with `wanted` threads uses, at most 4096; 0 leaves the choice to OpenMP.
inline int thread_count(int wanted) noexcept {
#if defined(_OPENMP)
  return wanted <= 0 ? omp_get_max_threads() : wanted < 4096 ? wanted : 4096;
#else
  static_cast<void>(wanted);
  return 1;
#endif
}

/// Calls body(index, thread) for each index in [0, count), in any order, dynamically shared out;
/// 0 <= thread < threads. Returns when all are done.
template <class Body>
void parallel_for(int threads, long long count, Body const& body) noexcept {
#if defined(_OPENMP)
  if (threads > 1 && count > 1) {
#  pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long long n = 0; n < count; ++n) body(n, omp_get_thread_num());
    return;
  }
#endif
  static_cast<void>(threads);
  for (long long n = 0; n < count; ++n) body(n, 0);
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
