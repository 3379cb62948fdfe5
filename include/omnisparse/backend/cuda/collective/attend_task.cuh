/// @file
/// One launch of the Hopper attend kernel as a value, and the items that it is made of.
#pragma once

#include <omnisparse/backend/cuda/chunk_range.cuh>
#include <omnisparse/backend/cuda/collective/attend_block.cuh>
#include <omnisparse/backend/cuda/collective/key_splits.hpp>
#include <omnisparse/backend/cuda/collective/softmax_terms.hpp>
#include <omnisparse/backend/cuda/kernel/gather_rows.cuh>
#include <omnisparse/backend/cuda/ptx/opaque.cuh>
#include <omnisparse/backend/cuda/row_schedule.cuh>
#include <omnisparse/core/call.hpp>

namespace omnisparse::collective {

/// Which keys the rows of a launch see.
enum class attend_keys : unsigned char {
  near,     ///< in order: the near field
  visible,  ///< in order or gathered: all that the mask allows; overwrites
  list      ///< gathered: the packed list; merges with what is there
};

/// What a launch of the kernel does. Lives on the host, travels by value.
template <class T>
struct attend_task {
  attention_call<T, device> call = {};
  lse_view<T, device> lse = {};
  near_field near = {};
  mask limit = mask::causal;
  attend_keys keys = attend_keys::visible;
  int* counter = nullptr;  ///< [1], 0 at the launch: the next item
  int section = 1;         ///< in order: heads that run together, so that L2 holds their keys
  // Gathered only:
  kernel::row_schedule schedule = {};
  plan_view<device> plan = {};
  chunk_range range = {};  ///< whose lists are packed
  int rows_per_list = 0;
  key_splits splits = {};  ///< visible keys only
  softmax_terms terms = {};
};

/// Makes item `n` of rows in order: heads of a section side by side, the longest tiles first.
template <class T>
__device__ inline void make_ordered_item(attend_task<T> const& task, int n, int tile_rows,
                                         attend_item& item) {
  attention_shape const& shape = task.call.shape;
  int const tiles = ceil_div(shape.q_tokens, tile_rows), heads = shape.batch * shape.q_heads;
  item = {};
  if (n >= tiles * heads) {
    item.rows = -1;
    return;
  }
  int const section = n / (task.section * tiles), at = n % (task.section * tiles);
  int const first_head = section * task.section;
  int const across = smaller(task.section, heads - first_head);
  int const head = first_head + at % across;
  item.first_row = (tiles - 1 - at / across) * tile_rows;
  item.batch = head / shape.q_heads;
  item.head = head % shape.q_heads;
  item.key_head = item.head / shape.group();
  item.key_batch = item.batch;
  sequence_extent const extent = extent_of(shape, task.call.in, item.batch);
  item.q_tokens = extent.q_tokens;
  item.kv_tokens = extent.kv_tokens;
  item.rows = clamped(extent.q_tokens - item.first_row, 0, tile_rows);
  if (item.rows == 0) return;
  int const first = extent.position(item.first_row), last = first + item.rows - 1;
  if (task.keys == attend_keys::visible) {
    item.walk.part[0] = key_stretch::of(near_field::visible(first, extent.kv_tokens, task.limit),
                                        near_field::visible(last, extent.kv_tokens, task.limit),
                                        tuning::hopper_keys);
    return;
  }
  item.walk.part[0] =
      key_stretch::of(task.near.window_of(first, extent.kv_tokens, task.limit),
                      task.near.window_of(last, extent.kv_tokens, task.limit), tuning::hopper_keys);
  key_range const sinks = task.near.sinks_of(last, extent.kv_tokens, task.limit);
  // A narrow tile reads its keys from the left, so all of them must exist.
  if (sinks.size() <= tuning::hopper_few_keys && tuning::hopper_few_keys <= extent.kv_tokens &&
      item.walk.part[0].tiles > 0) {
    item.few_keys = sinks.size();
  } else {
    item.walk.part[1] = key_stretch::of(task.near.sinks_of(first, extent.kv_tokens, task.limit),
                                        sinks, tuning::hopper_keys);
  }
}

/// What row `n` of an item in order sees of a part of its walk.
template <class T>
__device__ inline key_range ordered_range(attend_task<T> const& task, attend_item const& item,
                                          int n, int part) {
  int const i = item.first_row + n, position = item.kv_tokens - item.q_tokens + i;
  if (i >= item.q_tokens) return {};
  if (part == 1) return task.near.sinks_of(position, item.kv_tokens, task.limit);
  return task.keys == attend_keys::near ? task.near.window_of(position, item.kv_tokens, task.limit)
                                        : near_field::visible(position, item.kv_tokens, task.limit);
}

/// The n-th tile of a schedule among the chunks of a range; of count 0 beyond the last.
template <class T>
__device__ inline kernel::row_tile tile_of_range(attend_task<T> const& task, row_class kind,
                                                 int n) {
  kernel::row_schedule const& s = task.schedule;
  attention_shape const& shape = task.call.shape;
  if (task.range.count == s.chunks) return s.tile(shape, n);
  int const units = s.units(shape);
  int const* const begins = s.class_tiles + static_cast<int>(kind) * units;  // late units first
  for (int b = 0; b < shape.batch; ++b) {
    int const low = (b * s.chunks + task.range.first) * shape.kv_heads;
    int const begin = begins[low + task.range.count * shape.kv_heads - 1];
    int const end = low > 0 ? begins[low - 1] : *s.tile_count;
    if (n < end - begin) return s.tile(shape, begin + n);
    n -= end - begin;
  }
  return {};
}

/// What a gathered row sees of the two parts of its walk; `place` is its index in the schedule.
template <class T>
__device__ inline gathered_row gathered_range(attend_task<T> const& task, sequence_extent extent,
                                              std::int64_t place, int list_size) {
  kernel::row_schedule const& s = task.schedule;
  int const row = s.rows[place];
  if (task.keys == attend_keys::list) {
    int const right = s.right == nullptr ? list_size : smaller(s.right[place], list_size);
    return {row, smaller(s.left[place], list_size), right};
  }
  int const position = extent.position(row / task.call.shape.group());
  return {row, near_field::visible(position, extent.kv_tokens, task.limit).end, 0};
}

/// What a gathered row sees of a part of its item's walk.
__device__ inline key_range seen_of(gathered_row const& row, attend_item const& item, int part) {
  if (part == 0) return {item.keys.begin, smaller(row.left, item.keys.end)};
  return {row.right, item.list_size};
}

/// The row tile of item `n` of gathered rows; of count 0 beyond the last. Where keys are split, all
/// tiles come once, then again: those of one list read about the same keys at the same time.
template <class T>
__device__ inline kernel::row_tile gathered_tile(attend_task<T> const& task, int n) {
  if (task.keys == attend_keys::list) return tile_of_range(task, row_class::active, n);
  int const tiles = *task.schedule.tile_count;
  if (n >= tiles * task.splits.count(tiles)) return {};
  return task.schedule.tile(task.call.shape, n % tiles);
}

/// Makes item `n` of gathered rows, from its tile.
template <class T>
__device__ inline void make_gathered_item(attend_task<T> const& task, int n,
                                          kernel::row_tile const& tile, attend_item& item) {
  attention_shape const& shape = task.call.shape;
  bool const listed = task.keys == attend_keys::list;
  item = {};
  item.rows = tile.count > 0 ? tile.count : -1;
  if (tile.count == 0) return;
  // Opaque, or what divides by them is kept in registers from one item to the next.
  auto const kv_heads = static_cast<int>(ptx::opaque(static_cast<unsigned>(shape.kv_heads)));
  auto const chunks = static_cast<int>(ptx::opaque(static_cast<unsigned>(task.schedule.chunks)));
  int const g = tile.list % kv_heads, c = tile.list / kv_heads % chunks;
  item.batch = tile.list / kv_heads / chunks;
  item.place =
      ((std::int64_t{item.batch} * kv_heads + g) * shape.q_tokens + c * task.schedule.chunk_rows) *
          shape.group() +
      tile.first;
  item.head = g * shape.group();
  item.key_head = listed ? task.range.list(item.batch, c, g, shape.kv_heads) : g;
  item.key_batch = listed ? 0 : item.batch;
  sequence_extent const extent = extent_of(shape, task.call.in, item.batch);
  item.q_tokens = extent.q_tokens;
  item.kv_tokens = extent.kv_tokens;
  if (listed) {
    int const kept = clamped(task.plan.kept_counts[tile.list], 0, task.plan.capacity);
    int const skipped = task.schedule.list_begin[tile.list];
    item.list_size = clamped(kept - skipped, 0, task.rows_per_list);
    if (!task.call.in.kv_lengths.is_null()) {  // entries that exist
      int const* const list = task.plan.kept + std::int64_t{tile.list} * task.plan.capacity;
      item.list_size = kernel::lower_bound(list + skipped, item.list_size, item.kv_tokens);
    }
  }
  gathered_row const first = gathered_range(task, extent, item.place, item.list_size);
  gathered_row const last =
      gathered_range(task, extent, item.place + tile.count - 1, item.list_size);
  int const tiles = *task.schedule.tile_count;
  if (int const splits = listed ? 1 : task.splits.count(tiles); splits > 1) {
    item.slot = n;
    item.keys = key_splits::part(last.left, n / tiles, splits, tuning::hopper_keys);
  }
  // Which rows are active may change between two calls: the tiles of a list stay where they are.
  for (int part = 0; part < 2; ++part) {
    key_range const low = seen_of(first, item, part), high = seen_of(last, item, part);
    item.walk.part[part] =
        key_stretch::of(low, high, tuning::hopper_keys, listed ? item.list_size : high.end);
  }
}

}  // namespace omnisparse::collective
