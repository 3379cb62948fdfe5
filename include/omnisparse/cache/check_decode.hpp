/// @file
/// Are the sequences of a decode step in use?
#pragma once

#include <omnisparse/cache/kv_cache_ref.hpp>
#include <omnisparse/core/decode_call.hpp>

namespace omnisparse {

/// Refuses a step whose rows name a sequence that the cache does not have in use. Host caches.
template <class T>
status check_decode(decode_call<T, host> const& call, kv_cache_ref<host, T> const& cache) noexcept {
  for (int b = 0; b < call.q.extent(0); ++b) {
    if (!cache.in_use(call.sequence(b))) {
      return {status_code::unknown_sequence,
              "omnisparse: a row of decode names a sequence that is not in use: add() gives out "
              "numbers, finish() ends them; pass the numbers as 'sequences'"};
    }
  }
  return {};
}

}  // namespace omnisparse
