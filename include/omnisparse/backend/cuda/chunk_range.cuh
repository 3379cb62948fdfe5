/// @file
/// A few chunks of a plan at a time: how their lists are counted, and what planning scores them by.
#pragma once

#include <omnisparse/core/near_field.hpp>
#include <omnisparse/core/shape.hpp>
#include <omnisparse/core/workspace.hpp>

namespace omnisparse {

/// Chunks [first, first + count) of every sequence of a call. Their lists are counted locally:
/// (b * count + c - first) * kv_heads + g.
struct chunk_range {
  int first = 0;
  int count = 0;

  OMNISPARSE_HD constexpr int lists(attention_shape const& shape) const noexcept {
    return shape.batch * count * shape.kv_heads;
  }
  /// The local index of the list of sequence b, chunk c of the plan and KV head g.
  OMNISPARSE_HD constexpr int list(int b, int c, int g, int kv_heads) const noexcept {
    return (b * count + c - first) * kv_heads + g;
  }
  OMNISPARSE_HD constexpr int batch_of(int list, int kv_heads) const noexcept {
    return list / kv_heads / count;
  }
  /// The chunk of the plan, not of the range.
  OMNISPARSE_HD constexpr int chunk_of(int list, int kv_heads) const noexcept {
    return first + list / kv_heads % count;
  }
};

/// What every key of the lists of a chunk_range is worth. Only far candidates are read.
struct scores_view {
  float* mass = nullptr;   ///< [lists, keys], attention probability of the probe rows, >= 0
  float* score = nullptr;  ///< [lists, keys], what the scorer makes of it; ranks the keys
  int* pairs = nullptr;    ///< [lists], probe (row, head) pairs that see anything: their whole mass
  int keys = 0;            ///< kv_tokens rounded up to a multiple of 128

  /// Room for the lists of `range`.
  static scores_view take(detail::arena& arena, attention_shape const& shape,
                          chunk_range const& range) noexcept {
    auto const lists = static_cast<std::size_t>(range.lists(shape));
    scores_view s;
    s.keys = round_up(larger(1, shape.kv_tokens), 128);
    s.mass = arena.take<float>(lists * static_cast<std::size_t>(s.keys));
    s.score = arena.take<float>(lists * static_cast<std::size_t>(s.keys));
    s.pairs = arena.take<int>(lists);
    return s;
  }
};

}  // namespace omnisparse
