/// @file
/// The checks of a decode step: shapes and views, and whether its sequences are in use.
#pragma once

#include <omnisparse/cache/kv_cache_ref.hpp>
#include <omnisparse/core/decode_call.hpp>

#include <cstdint>

namespace omnisparse::inline OMNISPARSE_TARGET {

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

}  // namespace omnisparse::inline OMNISPARSE_TARGET

namespace omnisparse::detail {
inline namespace OMNISPARSE_TARGET {

// Rows and heads that a step on this cache may have.
template <class Space, class T>
constexpr status check_decode_shape(kv_cache_ref<Space, T> const& cache, int batch,
                                    int q_heads) noexcept {
  if (batch < 0 || q_heads < 0 || q_heads % cache.kv_heads != 0) {
    return shape_refusal(
        "omnisparse: decode takes a batch >= 0 and as many query heads as are a multiple of the "
        "cache's KV heads");
  }
  std::int64_t const rows = std::int64_t{larger(1, batch)} * larger(1, q_heads);
  constexpr std::int64_t most_pages = std::int64_t{1} << 32;
  if (!rows_fit(batch, q_heads, 1) || rows > most_pages / larger(1, cache.lane_pages)) {
    return shape_refusal(
        "omnisparse: decode takes at most 2^28 rows (B Hq), and 2^32 pages of max_tokens over all "
        "rows: split the step by batch");
  }
  return {};
}

// Views of a step that fit each other and the cache.
template <class T, class Space>
constexpr status check_decode_call(decode_call<T, Space> const& c,
                                   kv_cache_ref<Space, T> const& cache) noexcept {
  int const rows = c.q.extent(0), heads = c.q.extent(1);
  if (status const bad = check_decode_shape(cache, rows, heads); !bad.ok()) return bad;
  if (c.q.extent(2) != 1 || c.q.extent(3) != cache.dim ||
      !has_extents(c.out, rows, heads, 1, cache.dim) ||
      (c.sequences.is_given() && c.sequences.extent(0) != rows) ||
      (c.lse.is_given() &&
       (c.lse.extent(0) != rows || c.lse.extent(1) != heads || c.lse.extent(2) != 1))) {
    return shape_refusal(
        "omnisparse: decode takes q and out [B, Hq, 1, D] with Hq a multiple "
        "of the cache's KV heads and its D, lse [B, Hq, 1] and sequences "
        "[B]");
  }
  if (status const bad = check_optional(c.lse, c.sequences); !bad.ok()) return bad;
  if (!is_readable(c.q) || !is_readable(c.out)) {
    return {status_code::invalid_view,
            "omnisparse: q and out need memory and a contiguous last dimension (stride 1)"};
  }
  return strides_fit(c.q) && strides_fit(c.out) ? status{} : stride_refusal();
}

}  // namespace OMNISPARSE_TARGET
}  // namespace omnisparse::detail
