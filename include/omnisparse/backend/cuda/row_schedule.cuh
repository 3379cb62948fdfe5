/// @file
/// Which rows are attended to together: the rows of a unit sorted by class, cut into tiles.
#pragma once

#include <omnisparse/core/near_field.hpp>
#include <omnisparse/core/workspace.hpp>
#include <omnisparse/plan/plan.hpp>

namespace omnisparse::kernel {

/// One tile: consecutive rows of one unit and one class.
struct row_tile {
  int list = 0;   ///< the unit, as plan_view::list counts: (batch * chunks + chunk) * kv_heads + g
  int first = 0;  ///< in the unit's rows
  int count = 0;  ///< 0: nothing to do
  row_class kind = row_class::lazy;
};

/// The rows of a call in the order of the kernels. A unit is a (batch, chunk, KV head); a row is
/// i * group + head in group, so that the heads of a group stand side by side and share keys. A
/// unit's rows are sorted by class, then by position, then by head.
struct row_schedule {
  int* rows = nullptr;        ///< [batch, kv_heads, q_tokens * group]; null: every row in order
  int* left = nullptr;        ///< like rows: list entries left of the row's window, for active rows
  int* right = nullptr;       ///< like rows: the first entry right of it; only under mask::full
  int* list_begin = nullptr;  ///< [units], list entries that are sinks
  row_tile* tiles = nullptr;  ///< [most_tiles], longest work first
  int* tile_count = nullptr;  ///< [1]
  int* next = nullptr;        ///< [1], the next item to be taken; 0 once the rows are sorted
  int* some = nullptr;        ///< [1], set to 0 when rows are sorted, to 1 by whoever rescues one
  int* counts = nullptr;      ///< [units, parts, 3], rows of each class, then their offsets
  int* class_tiles = nullptr;  ///< [3, units], the first tile of each class of each unit
  int chunks = 1;
  int chunk_rows = 1;
  int parts = 1;      ///< blocks that sort one unit
  int tile_rows = 1;  ///< most rows of a tile
  int most_tiles = 0;
  row_class all = row_class::rescued;  ///< the class of every row where rows is null

  static constexpr int part_rows = 2048;  ///< rows that one block sorts

  /// Sorted rows for the tiles of a plan.
  static row_schedule take(detail::arena& arena, attention_shape const& shape, int chunk_rows,
                           mask limit, int tile_rows) noexcept {
    row_schedule s = in_order(shape, tile_rows, row_class::lazy);
    s.chunk_rows = larger(1, smaller(chunk_rows, larger(1, shape.q_tokens)));
    s.chunks = ceil_div(shape.q_tokens, s.chunk_rows);
    s.parts = ceil_div(s.chunk_rows * shape.group(), part_rows);
    int const units = shape.batch * s.chunks * shape.kv_heads;
    auto const u = static_cast<std::size_t>(units);
    auto const n = static_cast<std::size_t>(shape.batch) * static_cast<std::size_t>(shape.q_heads) *
                   static_cast<std::size_t>(shape.q_tokens);
    s.most_tiles =
        shape.batch * shape.kv_heads * ceil_div(shape.q_tokens * shape.group(), tile_rows) +
        3 * units;
    s.rows = arena.take<int>(n);
    s.left = arena.take<int>(n);
    s.right = limit == mask::full ? arena.take<int>(n) : nullptr;
    s.list_begin = arena.take<int>(u);
    s.tiles = arena.take<row_tile>(static_cast<std::size_t>(s.most_tiles));
    s.tile_count = arena.take<int>(1);
    s.next = arena.take<int>(1);
    s.some = arena.take<int>(1);
    s.counts = arena.take<int>(u * static_cast<std::size_t>(s.parts) * 3);
    s.class_tiles = arena.take<int>(u * 3);
    return s;
  }

  /// All rows in order, of one class: no memory is needed.
  static row_schedule in_order(attention_shape const& shape, int tile_rows,
                               row_class all) noexcept {
    row_schedule s;
    s.chunk_rows = larger(1, shape.q_tokens);
    s.tile_rows = tile_rows;
    s.all = all;
    s.most_tiles =
        shape.batch * shape.kv_heads * ceil_div(shape.q_tokens * shape.group(), tile_rows);
    return s;
  }

  OMNISPARSE_HD constexpr int units(attention_shape const& shape) const noexcept {
    return shape.batch * chunks * shape.kv_heads;
  }
  /// Where the rows of unit `list` begin in rows, left and right.
  OMNISPARSE_HD constexpr std::int64_t begin(attention_shape const& shape,
                                             int list) const noexcept {
    int const g = list % shape.kv_heads, c = list / shape.kv_heads % chunks;
    int const b = list / shape.kv_heads / chunks;
    return ((std::int64_t{b} * shape.kv_heads + g) * shape.q_tokens +
            std::int64_t{c} * chunk_rows) *
           shape.group();
  }
  /// Tile `n` of the schedule; of count 0 beyond the last.
  OMNISPARSE_HD row_tile tile(attention_shape const& shape, int n) const noexcept {
    if (rows != nullptr) return n < *tile_count ? tiles[n] : row_tile{};
    int const size = shape.q_tokens * shape.group(), across = shape.batch * shape.kv_heads;
    int const first = (ceil_div(size, tile_rows) - 1 - n / across) * tile_rows;  // longest first
    return {n % across, first, smaller(tile_rows, size - first), all};
  }
  /// Row `n` of unit `list`, as i * group + head in group.
  OMNISPARSE_HD int row(attention_shape const& shape, int list, int n) const noexcept {
    return rows == nullptr ? n : rows[begin(shape, list) + n];
  }
};

/// A stretch of keys that the rows of a tile read, and the ways a row may see less of it.
struct key_segment {
  enum class source : unsigned char { sinks, window, left, right, visible };
  source from = source::visible;
  int begin = 0, end = 0;              ///< what any row of the tile sees: keys, or list entries
  int plain_begin = 0, plain_end = 0;  ///< what all rows see: no mask is needed here

  OMNISPARSE_HD constexpr bool listed() const noexcept {
    return from == source::left || from == source::right;
  }
  OMNISPARSE_HD constexpr bool is_plain(int first, int last) const noexcept {
    return plain_begin <= first && last <= plain_end;
  }
};

/// The part of a segment that one row sees. `left` and `right` are the row's entries of the
/// schedule, `list_size` counts the list's entries beyond the sinks.
OMNISPARSE_HD constexpr key_range seen_of(key_segment::source from, near_field const& near,
                                          mask limit, int position, int kv_tokens, int left,
                                          int right, int list_size) noexcept {
  switch (from) {
    case key_segment::source::sinks:
      return near.sinks_of(position, kv_tokens, limit);
    case key_segment::source::window:
      return near.window_of(position, kv_tokens, limit);
    case key_segment::source::left:
      return {0, left};
    case key_segment::source::right:
      return {right, list_size};
    default:
      return near_field::visible(position, kv_tokens, limit);
  }
}

/// The stretch that a tile reads, from what its first and its last row see: both ends of every
/// range ascend with the position, of empty ranges too. Where both see nothing, all rows do.
OMNISPARSE_HD constexpr key_segment segment_of(key_segment::source from, key_range first,
                                               key_range last) noexcept {
  if (first.size() == 0 && last.size() == 0) return {from};
  return {from, first.begin, last.end, last.begin, first.end};
}

/// How many segments a class reads, and which; the window, nearest and always there, comes first.
OMNISPARSE_HD constexpr int segments_of(row_class kind, mask limit) noexcept {
  return kind == row_class::rescued ? 1 : kind == row_class::lazy ? 2 : limit == mask::full ? 4 : 3;
}
OMNISPARSE_HD constexpr key_segment::source segment_source(row_class kind, int n) noexcept {
  using source = key_segment::source;
  if (kind == row_class::rescued) return source::visible;
  return n == 0 ? source::window : n == 1 ? source::sinks : n == 2 ? source::left : source::right;
}

}  // namespace omnisparse::kernel
