/// @file
/// One row tile of the portable kernel: its rows, what they see, and its walk over the keys.
#pragma once

#include <omnisparse/backend/cuda/collective/softmax_terms.hpp>
#include <omnisparse/backend/cuda/kernel/gather_rows.cuh>
#include <omnisparse/backend/cuda/ptx/cp_async.cuh>
#include <omnisparse/backend/cuda/row_schedule.cuh>
#include <omnisparse/core/call.hpp>

namespace omnisparse::collective {

/// One launch of the portable kernel as a value.
template <class T>
struct portable_task {
  attention_call<T, device> call = {};
  lse_view<T, device> lse = {};
  near_field near = {};
  mask limit = mask::causal;
  kernel::row_schedule schedule = {};
  plan_view<device> plan = {};  ///< its lists, read for active rows
  // Views whose rows all begin at multiples of 16 bytes:
  bool aligned_q = false, aligned_k = false, aligned_v = false, aligned_out = false;
  softmax_terms terms = {};
};

/// What a tile is, the same for all threads of a block.
struct tile_frame {
  int b = 0, g = 0;
  int rows = 0;      ///< of the tile
  int existing = 0;  ///< the first rows, that are in use by the sequence
  row_class kind = row_class::lazy;
  sequence_extent extent = {};
  int const* list = nullptr;  ///< the entries that are no sinks
  int list_size = 0;
  std::int64_t place = 0;  ///< of its first row in the schedule's rows

  template <class T>
  static __device__ tile_frame of(portable_task<T> const& task, kernel::row_tile const& tile) {
    attention_shape const& shape = task.call.shape;
    kernel::row_schedule const& s = task.schedule;
    tile_frame f;
    f.g = tile.list % shape.kv_heads;
    f.b = tile.list / shape.kv_heads / s.chunks;
    f.rows = tile.count;
    f.kind = tile.kind;
    f.place = s.begin(shape, tile.list) + tile.first;
    f.extent = extent_of(shape, task.call.in, f.b);
    // Sorted rows all exist; in order, the missing ones come last.
    f.existing = s.rows != nullptr
                     ? tile.count
                     : clamped(f.extent.q_tokens * shape.group() - tile.first, 0, tile.count);
    if (f.kind != row_class::active) return f;
    int const skipped = s.list_begin[tile.list];
    f.list = task.plan.kept + std::int64_t{tile.list} * task.plan.capacity + skipped;
    f.list_size = clamped(task.plan.kept_counts[tile.list], 0, task.plan.capacity) - skipped;
    if (task.limit == mask::full && !task.call.in.kv_lengths.is_null()) {  // entries that exist
      f.list_size = kernel::lower_bound(f.list, f.list_size, f.extent.kv_tokens);
    }
    return f;
  }
};

/// Where a walk over the segments of a tile stands: at entries [first, first + Keys).
struct key_cursor {
  int segment = 0;
  int first = 0;
};

/// What the threads of a block share about its tile.
template <int Rows, int Keys>
struct portable_tile {
  static constexpr int most_segments = 4, slots = 4;
  tile_frame frame;
  int row[Rows];          ///< i * group + head in group; -1 where no row exists
  key_range range[Rows];  ///< what each row sees of the segment that was shown last
  int keys[slots][Keys];  ///< the keys of a few key tiles; -1: none
  kernel::key_segment segments[most_segments];
  int segment_count;

  /// Fills in rows and segments; every thread of the block calls it.
  template <class T>
  __device__ void set(portable_task<T> const& task, kernel::row_tile const& tile) noexcept {
    if (threadIdx.x == 0) frame = tile_frame::of(task, tile);
    __syncthreads();
    int const n = static_cast<int>(threadIdx.x);
    if (n < Rows) {
      row[n] =
          n < frame.existing ? task.schedule.row(task.call.shape, tile.list, tile.first + n) : -1;
    }
    __syncthreads();
    int const count = frame.existing > 0 ? kernel::segments_of(frame.kind, task.limit) : 0;
    if (n == 0) segment_count = count;
    if (n < count) {
      auto const from = kernel::segment_source(frame.kind, n);
      auto segment =
          kernel::segment_of(from, seen(task, from, 0), seen(task, from, frame.existing - 1));
      // Tiles begin at multiples of their width, so that no row's bits depend on its neighbours.
      if (segment.begin < segment.end) segment.begin -= segment.begin % Keys;
      segments[n] = segment;
    }
    __syncthreads();
  }

  /// Writes `range`; every thread of the block calls it, and a barrier must follow.
  template <class T>
  __device__ void show(portable_task<T> const& task, int segment) noexcept {
    int const n = static_cast<int>(threadIdx.x);
    if (n < Rows) range[n] = seen(task, segments[segment].from, n);
  }

  __device__ bool is_done(key_cursor c) const noexcept { return c.segment >= segment_count; }
  __device__ key_cursor begin() const noexcept {
    return segment_count > 0 ? skip_empty({0, segments[0].begin}) : key_cursor{};
  }
  __device__ key_cursor after(key_cursor c) const noexcept {
    return skip_empty({c.segment, c.first + Keys});
  }

  /// Writes the keys of a key tile, or asks for them: ready after cp_async_wait and a barrier.
  __device__ void find_keys(key_cursor c, int slot) noexcept {
    int const n = static_cast<int>(threadIdx.x);
    if (n >= Keys || is_done(c)) return;
    kernel::key_segment const& segment = segments[c.segment];
    int const entry = c.first + n;
    int* const to = &keys[slot % slots][n];
    if (entry >= segment.end) *to = -1;
    else if (segment.listed()) ptx::cp_async_4(to, frame.list + entry);
    else *to = entry;
  }
  /// Key `n` of a key tile; -1: none. A damaged list names no key beyond `last`.
  __device__ int key(int slot, int n, int last) const noexcept {
    return smaller(keys[slot % slots][n], last);
  }
  __device__ int last_key() const noexcept { return frame.extent.kv_tokens - 1; }

 private:
  // What row `r` sees of a kind of segment; nothing where it does not exist.
  template <class T>
  __device__ key_range seen(portable_task<T> const& task, kernel::key_segment::source from,
                            int r) const noexcept {
    if (r >= frame.existing) return {};
    kernel::row_schedule const& s = task.schedule;
    bool const listed = frame.kind == row_class::active;
    int const left = listed ? smaller(s.left[frame.place + r], frame.list_size) : 0;
    int const right =
        listed && s.right != nullptr ? smaller(s.right[frame.place + r], frame.list_size) : 0;
    return kernel::seen_of(from, task.near, task.limit,
                           frame.extent.position(row[r] / task.call.shape.group()),
                           frame.extent.kv_tokens, left, right, frame.list_size);
  }

  __device__ key_cursor skip_empty(key_cursor c) const noexcept {
    while (c.segment < segment_count && c.first >= segments[c.segment].end) {
      ++c.segment;
      if (c.segment < segment_count) c.first = segments[c.segment].begin;
    }
    return c;
  }
};

}  // namespace omnisparse::collective
