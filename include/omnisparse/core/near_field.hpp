/// @file
/// The part of attention that every row gets: a sliding window and the first few keys.
#pragma once

#include <omnisparse/core/math.hpp>
#include <omnisparse/core/shape.hpp>

namespace omnisparse {

/// Half-open range of key indices.
struct key_range {
  int begin = 0;
  int end = 0;

  OMNISPARSE_HD constexpr int size() const noexcept { return end > begin ? end - begin : 0; }
  OMNISPARSE_HD constexpr bool contains(int j) const noexcept { return begin <= j && j < end; }
};

/// near(i): the keys j < `sinks` and those less than `window` positions away, all of them no later
/// than the row under `mask::causal`, on both sides of it under `mask::full`. Both options in
/// tokens, >= 0; 0 and 0 (the default) is an empty near field, as the published figure reads.
struct near_field {
  int window = 0;
  int sinks = 0;

  /// The keys that a row at `position` may see at all, of `kv_tokens`.
  OMNISPARSE_HD static constexpr key_range visible(int position, int kv_tokens,
                                                   mask limit) noexcept {
    int const causal_end = clamped(position + 1, 0, kv_tokens);
    return {0, limit == mask::causal ? causal_end : kv_tokens};
  }

  /// The sinks that the row sees: [0, sinks) cut to what is visible.
  OMNISPARSE_HD constexpr key_range sinks_of(int position, int kv_tokens,
                                             mask limit) const noexcept {
    return {0, smaller(sinks, visible(position, kv_tokens, limit).end)};
  }

  /// The window of the row: its visible keys less than `window` away that are not sinks.
  OMNISPARSE_HD constexpr key_range window_of(int position, int kv_tokens,
                                              mask limit) const noexcept {
    key_range const all = visible(position, kv_tokens, limit);
    int const first = position < window ? 0 : position - window + 1;
    int const last = position < 0x7fffffff - window ? position + window : 0x7fffffff;
    int const begin = clamped(larger(first, sinks), 0, all.end);
    int const end = limit == mask::causal ? all.end : clamped(last, 0, all.end);
    return {begin, larger(begin, end)};
  }

  /// Is key `j`, visible to the row, in its near field?
  OMNISPARSE_HD constexpr bool contains(int j, int position, int kv_tokens,
                                        mask limit) const noexcept {
    return sinks_of(position, kv_tokens, limit).contains(j) ||
           window_of(position, kv_tokens, limit).contains(j);
  }
};

/// The keys that at least one row of a chunk sees beyond its near field: what a list may usefully
/// hold. Keys before `left.end` and, under `mask::full`, from `right.begin` on; sinks never.
struct far_candidates {
  key_range left = {};
  key_range right = {};

  OMNISPARSE_HD constexpr int size() const noexcept { return left.size() + right.size(); }
  OMNISPARSE_HD constexpr bool contains(int j) const noexcept {
    return left.contains(j) || right.contains(j);
  }
  /// The n-th candidate in ascending order, 0 <= n < size().
  OMNISPARSE_HD constexpr int key(int n) const noexcept {
    return n < left.size() ? left.begin + n : right.begin + n - left.size();
  }
};

inline namespace OMNISPARSE_TARGET {

/// The candidates of a chunk whose first and last row stand at these positions.
OMNISPARSE_HD constexpr far_candidates candidates_of(near_field const& near, int first_position,
                                                     int last_position, int kv_tokens,
                                                     mask limit) noexcept {
  key_range const last = near.window_of(last_position, kv_tokens, limit);
  int const sinks = smaller(near.sinks, kv_tokens);
  if (limit == mask::causal) return {{sinks, larger(sinks, last.begin)}, {}};
  key_range const first = near.window_of(first_position, kv_tokens, limit);
  if (first.end <= last.begin) return {{sinks, kv_tokens}, {}};  // no key is near to all rows
  return {{sinks, larger(sinks, last.begin)}, {larger(sinks, first.end), kv_tokens}};
}

}  // namespace OMNISPARSE_TARGET

/// How many query rows share one kept list per KV head; 0 means all rows of the call.
struct chunk {
  int rows = 0;
};

}  // namespace omnisparse
