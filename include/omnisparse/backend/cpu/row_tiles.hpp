/// @file
/// The rows of a call gathered by class into tiles: which rows run together, and by what cost.
#pragma once

#include <omnisparse/backend/cpu/flash_tile.hpp>
#include <omnisparse/backend/cpu/threads.hpp>
#include <omnisparse/core/call.hpp>
#include <omnisparse/plan/plan.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

/// A set of row classes.
struct class_set {
  unsigned bits = 0;

  constexpr bool holds(row_class kind) const noexcept {
    return (bits >> static_cast<unsigned>(kind) & 1u) != 0;
  }
};

/// The set of these classes.
template <class... Kind>
constexpr class_set classes_of(Kind... kind) noexcept {
  return {((1u << static_cast<unsigned>(kind)) | ... | 0u)};
}
inline constexpr class_set every_class =
    classes_of(row_class::lazy, row_class::active, row_class::rescued);

/// Which rows of a call are attended to, and how. `plan.rows` null: every row is of class `all`.
/// Rows of other classes than `classes` are left alone.
struct row_choice {
  plan_view<host> plan = {};
  class_set classes = every_class;
  row_class all = row_class::rescued;

  row_class of(int b, int h, int i) const noexcept {
    return plan.rows == nullptr ? all : plan.rows_at(b, h)[i];
  }
};

/// One (batch, KV head, chunk): its rows, sorted by class, then by position, then by head.
struct row_unit {
  int b = 0, g = 0, c = 0;
  int counts[3] = {};          ///< rows of each class
  int list_begin = 0;          ///< the plan's entries in use: [list_begin, list_begin +
  int list_count = 0;          ///<  list_count), without sinks and keys that do not exist
  int list_size = 0;           ///< packed: sinks, then entries
  std::ptrdiff_t list_at = 0;  ///< where the packed list starts, in keys
  bool list_finite = true;
  bool everything = false;  ///< the list holds every key that active rows could see
};

/// A tile: `rows` rows of a unit that see keys in the same way. Active rows whose list holds
/// everything run as rescued ones, and nothing is packed for them.
struct row_tile {
  std::int64_t cost = 0;  ///< keys times rows, about
  int unit = 0;
  int first = 0;  ///< of the unit's rows
  int rows = 0;
  row_class kind = row_class::lazy;
};

/// A row of a unit in one integer: its index and its head of the group. Shifts take it apart.
struct row_coding {
  int shift = 0;

  static constexpr row_coding of(int group) noexcept {
    int bits = 0;
    while ((1 << bits) < group) ++bits;
    return {bits};
  }
  constexpr int code(int index, int head) const noexcept { return index << shift | head; }
  constexpr int index(int code) const noexcept { return code >> shift; }
  constexpr int head(int code) const noexcept { return code & ((1 << shift) - 1); }
};

/// The units of a call and the codes of their rows.
struct row_units {
  row_unit* units = nullptr;  ///< [batch, kv_heads, chunks]
  int* rows = nullptr;        ///< [batch, kv_heads, q_tokens * group]
  int chunks = 0;
  int chunk_rows = 1;
  int count = 0;  ///< batch * kv_heads * chunks

  template <class Arena>
  static row_units take(Arena& arena, attention_shape const& shape) noexcept {
    auto const count = [](int n) { return static_cast<std::size_t>(n); };
    std::size_t const slots = count(shape.batch) * count(shape.kv_heads);
    row_units u;
    u.units = arena.template take<row_unit>(slots * count(larger(1, shape.q_tokens)));
    u.rows = arena.template take<int>(slots * count(shape.q_tokens) * count(shape.group()));
    return u;
  }

  /// The first row code of a unit.
  int* rows_of(attention_shape const& shape, row_unit const& u) const noexcept {
    std::ptrdiff_t const slot = std::ptrdiff_t{u.b} * shape.kv_heads + u.g;
    return rows + (slot * shape.q_tokens + std::ptrdiff_t{u.c} * chunk_rows) * shape.group();
  }
};

/// Sorts the rows of every unit by class, and looks at what its list holds.
template <class T>
void gather_rows(attention_call<T, host> const& call, row_choice const& choice,
                 near_field const& near, mask limit, int threads, row_units& units) noexcept {
  attention_shape const& shape = call.shape;
  units.chunk_rows =
      choice.plan.rows == nullptr ? larger(1, shape.q_tokens) : choice.plan.chunk_rows;
  units.chunks = ceil_div(shape.q_tokens, units.chunk_rows);
  int const group = shape.group();
  units.count = shape.batch * shape.kv_heads * units.chunks;
  parallel_for(threads, units.count, [&](long long n, int) {
    row_unit& u = units.units[n];
    u = {};
    u.c = static_cast<int>(n % units.chunks);
    u.g = static_cast<int>(n / units.chunks % shape.kv_heads);
    u.b = static_cast<int>(n / units.chunks / shape.kv_heads);
    sequence_extent const extent = extent_of(shape, call.in, u.b);
    int const first = u.c * units.chunk_rows;
    int const last = std::min(extent.q_tokens, first + units.chunk_rows);
    if (last <= first) return;
    if (choice.plan.rows != nullptr) {
      int const* const kept = choice.plan.kept_at(u.b, u.c, u.g);
      int const* const kept_end = kept + choice.plan.kept_counts[choice.plan.list(u.b, u.c, u.g)];
      int const* const begin = std::lower_bound(kept, kept_end, near.sinks);
      // Behind the last row's window there is nothing far: no row sees those entries as kept.
      int const beyond =
          limit == mask::causal
              ? near.window_of(extent.position(last - 1), extent.kv_tokens, limit).begin
              : extent.kv_tokens;
      int const* const end = std::lower_bound(begin, kept_end, beyond);
      u.list_begin = static_cast<int>(begin - kept);
      u.list_count = static_cast<int>(end - begin);
      u.list_size = u.list_count + std::min(near.sinks, extent.kv_tokens);
      far_candidates const far = candidates_of(near, extent.position(first),
                                               extent.position(last - 1), extent.kv_tokens, limit);
      std::ptrdiff_t const held =
          std::lower_bound(begin, end, far.left.end) -
          std::lower_bound(begin, end, far.left.begin) +
          (end -
           std::lower_bound(begin, end, far.right.size() > 0 ? far.right.begin : extent.kv_tokens));
      u.everything = held == far.size();
    }
    // Counted, then written behind one another: nothing to mispredict on mixed classes.
    row_coding const coding = row_coding::of(group);
    auto const each = [&](auto const& use) {
      for (int i = first; i < last; ++i) {
        for (int h = 0; h < group; ++h) {
          use(static_cast<unsigned>(choice.of(u.b, u.g * group + h, i)), coding.code(i, h));
        }
      }
    };
    int counts[4] = {};
    each([&](unsigned kind, int) { ++counts[kind & 3u]; });
    int* const rows = units.rows_of(shape, u);
    int at[4] = {};
    for (int kind = 0, next = 0; kind < 4; ++kind) {
      bool const wanted = kind < 3 && choice.classes.holds(static_cast<row_class>(kind));
      if (wanted) u.counts[kind] = counts[kind];
      at[kind] = next;
      if (wanted) next += counts[kind];
    }
    each([&](unsigned kind, int code) {
      if (choice.classes.holds(static_cast<row_class>(kind))) rows[at[kind & 3u]++] = code;
    });
    if (u.everything || u.counts[static_cast<int>(row_class::active)] == 0) u.list_size = 0;
  });
}

/// Cuts the rows of these classes of units [first, last) into tiles, costliest first. Returns their
/// number; `tiles` has room for `most_tiles`.
inline int cut_tiles(row_units const& units, class_set classes, int first, int last,
                     attention_shape const& shape, near_field const& near, mask limit,
                     row_tile* tiles) noexcept {
  int count = 0;
  for (int n = first; n < last; ++n) {
    row_unit const& u = units.units[n];
    int at = 0;
    for (int kind = 0; kind < 3; ++kind) {
      int const total = u.counts[kind];
      bool const wanted = classes.holds(static_cast<row_class>(kind));
      for (int done = 0; wanted && done < total; done += tile_rows) {
        row_tile& t = tiles[count++];
        t = {0, n, at + done, std::min(tile_rows, total - done), static_cast<row_class>(kind)};
        if (u.everything && t.kind == row_class::active) t.kind = row_class::rescued;
        int const code = units.rows_of(shape, u)[t.first + t.rows - 1];
        std::int64_t const position =
            shape.kv_tokens - shape.q_tokens + row_coding::of(shape.group()).index(code);
        std::int64_t const all = limit == mask::causal ? position + 1 : shape.kv_tokens;
        std::int64_t const close = std::min(all, std::int64_t{near.window} + tile_rows);
        t.cost = t.rows * (t.kind == row_class::rescued ? all
                           : t.kind == row_class::lazy  ? close
                                                        : std::min(all, close + u.list_size));
      }
      at += total;
    }
  }
  std::sort(tiles, tiles + count, [](row_tile const& x, row_tile const& y) {
    if (x.cost != y.cost) return x.cost > y.cost;
    return x.unit != y.unit ? x.unit < y.unit : x.first < y.first;
  });
  return count;
}

/// The most tiles that a call of this shape can be cut into.
inline std::size_t most_tiles(attention_shape const& shape) noexcept {
  auto const count = [](int n) { return static_cast<std::size_t>(n); };
  std::size_t const slots = count(shape.batch) * count(shape.kv_heads);
  std::size_t const rows = slots * count(shape.q_tokens) * count(shape.group());
  return rows / tile_rows + std::min(rows, 3 * slots * count(shape.q_tokens)) + 1;
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
