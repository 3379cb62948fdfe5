/// @file
/// What a kernel sees of a cache: the pages, and each sequence's page tables.
#pragma once

#include <omnisparse/core/math.hpp>
#include <omnisparse/core/question.hpp>
#include <omnisparse/core/tensor_view.hpp>

#include <cstddef>
#include <cstdint>

namespace omnisparse {

/// Bytes beyond the last page's keys, and beyond its values, that may be read: whole vectors.
inline constexpr std::size_t kv_cache_slack = 256;

/// A cache by reference; copies freely. Stored tokens lie in lanes, one for each (sequence, KV
/// head, segment), ascending by position. Token n of a lane: page table[n / page_tokens], slot
/// n % page_tokens. A page's keys, values and positions are each contiguous. Values are rows; keys
/// lie across: element d of all slots of the page, then element d + 1. So neighbouring vector
/// lanes, or GPU threads, hold neighbouring keys and dot products need no sum across them, and a
/// matrix unit finds K^T as it finds V. Slots that hold no token may hold anything.
template <class Space, class T>
struct kv_cache_ref {
  T* keys = nullptr;           ///< [pages, dim, page_tokens]
  T* values = nullptr;         ///< [pages, page_tokens, dim]
  int* positions = nullptr;    ///< [pages, page_tokens]
  int* tables = nullptr;       ///< [lanes, lane_pages], page numbers
  int* stored = nullptr;       ///< [lanes], tokens
  int* appended = nullptr;     ///< [sequences], tokens ever appended; -1: not in use
  double* key_sums = nullptr;  ///< [sequences, kv_heads, 2, dim], over every key ever appended: of
                               ///< the first sink_keys, of the others
  int sequences = 0, kv_heads = 1, dim = 0, page_tokens = 64, lane_pages = 0, sink_keys = 1;

  OMNISPARSE_HD constexpr std::int64_t lane(int sequence, int kv_head,
                                            segment kind) const noexcept {
    return (std::int64_t{sequence} * kv_heads + kv_head) * 2 + (kind == segment::text ? 0 : 1);
  }
  OMNISPARSE_HD constexpr int page(std::int64_t lane, int index) const noexcept {
    return tables[lane * lane_pages + index];
  }
  /// The page's keys from a slot on: [dim], page_tokens apart.
  OMNISPARSE_HD constexpr T* keys_at(int page, int slot = 0) const noexcept {
    return keys + std::int64_t{page} * page_tokens * dim + slot;
  }
  /// The page's value rows from a slot on: [dim] each.
  OMNISPARSE_HD constexpr T* values_at(int page, int slot = 0) const noexcept {
    return values + (std::int64_t{page} * page_tokens + slot) * dim;
  }
  OMNISPARSE_HD constexpr int* positions_at(int page, int slot = 0) const noexcept {
    return positions + std::int64_t{page} * page_tokens + slot;
  }
  OMNISPARSE_HD constexpr double* key_sum_at(int sequence, int kv_head, int part) const noexcept {
    return key_sums + ((std::int64_t{sequence} * kv_heads + kv_head) * 2 + part) * dim;
  }
  OMNISPARSE_HD constexpr bool in_use(int sequence) const noexcept {
    return 0 <= sequence && sequence < sequences && appended[sequence] >= 0;
  }
};

}  // namespace omnisparse
