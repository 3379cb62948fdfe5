/// @file
/// The plan as plain data: the class of every row, and the kept tokens of every chunk and KV head.
#pragma once

#include <omnisparse/core/check_shape.hpp>
#include <omnisparse/core/math.hpp>
#include <omnisparse/core/memory.hpp>
#include <omnisparse/core/near_field.hpp>
#include <omnisparse/core/shape.hpp>

#include <cstddef>
#include <cstdint>

namespace omnisparse {

/// A plan in memory that the caller owns. Print it, save it, edit it, write one by hand, reuse it
/// in the next layer: `run` takes any valid plan (`check_plan`). Rows r of a chunk share one
/// ascending list of key indices per KV head; entries that are near, or later than a row, mean
/// nothing to that row, so a list may hold them.
template <class Space = host>
struct plan_view {
  attention_shape shape = {};
  int chunk_rows = 1;          ///< rows per list, >= 1
  int capacity = 0;            ///< most tokens of a list
  row_class* rows = nullptr;   ///< [batch, q_heads, q_tokens]
  int* kept = nullptr;         ///< [batch, chunks, kv_heads, capacity]; key indices, ascending
  int* kept_counts = nullptr;  ///< [batch, chunks, kv_heads]
  float* recalls = nullptr;    ///< [batch, chunks, kv_heads], share of the probe rows' mass that
                               ///< near field and list hold; -1 where not measured

  OMNISPARSE_HD constexpr int chunks() const noexcept {
    return ceil_div(shape.q_tokens, chunk_rows);
  }
  /// The index of a list: of its count and its recall.
  OMNISPARSE_HD constexpr std::int64_t list(int b, int chunk_index, int kv_head) const noexcept {
    return (std::int64_t{b} * chunks() + chunk_index) * shape.kv_heads + kv_head;
  }
  /// The first entry of a list.
  OMNISPARSE_HD constexpr int* kept_at(int b, int chunk_index, int kv_head) const noexcept {
    return kept + list(b, chunk_index, kv_head) * capacity;
  }
  /// The first row class of a head.
  OMNISPARSE_HD constexpr row_class* rows_at(int b, int q_head) const noexcept {
    return rows + (std::int64_t{b} * shape.q_heads + q_head) * shape.q_tokens;
  }
  OMNISPARSE_HD constexpr std::int64_t row_count() const noexcept {
    return std::int64_t{shape.batch} * shape.q_heads * shape.q_tokens;
  }
  OMNISPARSE_HD constexpr std::int64_t list_count() const noexcept {
    return std::int64_t{shape.batch} * chunks() * shape.kv_heads;
  }
};

/// Owns a plan in `Space`. Allocates in the constructor, once: one byte a row and 4 bytes a list
/// entry. A fresh plan keeps every row lazy and every list empty. `bool` is false if memory was
/// not to be had or the shape, the chunk or the capacity makes no sense.
template <class Space = host>
class attention_plan {
 public:
  attention_plan() noexcept = default;

  /// Room for a call of `shape` with lists of `rows` rows (0: one list for the call) and at most
  /// `capacity` tokens (-1: kv_tokens, which never clamps a budget).
#if defined(__GNUC__)
  // The one type of all targets: each unit has the code in its own functions.
  [[gnu::always_inline]]
#endif
  explicit attention_plan(attention_shape const& shape, chunk rows = {},
                          int capacity = -1) noexcept {
    if (!detail::check_counts(shape).ok() || rows.rows < 0 || capacity > detail::most_rows) return;
    view_.shape = shape;
    view_.chunk_rows = rows.rows > 0 ? rows.rows : larger(1, shape.q_tokens);
    view_.capacity = capacity < 0 ? shape.kv_tokens : capacity;
    auto const row_bytes = padded(view_.row_count() * std::int64_t{sizeof(row_class)});
    auto const list_bytes = padded(view_.list_count() * std::int64_t{sizeof(int)});
    auto const kept_bytes = padded(view_.list_count() * view_.capacity * std::int64_t{sizeof(int)});
    memory_ = buffer<Space>(row_bytes + 2 * list_bytes + kept_bytes);
    if (!memory_) {
      view_ = {};
      return;
    }
    auto* const bytes = static_cast<std::byte*>(memory_.data());
    view_.rows = reinterpret_cast<row_class*>(bytes);
    view_.kept_counts = reinterpret_cast<int*>(bytes + row_bytes);
    view_.recalls = reinterpret_cast<float*>(bytes + row_bytes + list_bytes);
    view_.kept = reinterpret_cast<int*>(bytes + row_bytes + 2 * list_bytes);
  }

  plan_view<Space> view() const noexcept { return view_; }
  operator plan_view<Space>() const noexcept { return view_; }
  std::size_t bytes() const noexcept { return memory_.bytes(); }
  explicit operator bool() const noexcept { return static_cast<bool>(memory_); }

 private:
  // At least one byte of padding, so that even an empty plan has memory and differs from a failed
  // one.
  static constexpr std::size_t padded(std::int64_t bytes) noexcept {
    return round_up(static_cast<std::size_t>(bytes) + 1, std::size_t{256});
  }

  plan_view<Space> view_ = {};
  buffer<Space> memory_;
};

}  // namespace omnisparse
