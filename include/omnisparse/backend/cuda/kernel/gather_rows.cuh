/// @file
/// Sorts the rows of each unit by class, and lists the tiles: count, scan, place.
#pragma once

#include <omnisparse/backend/cuda/row_schedule.cuh>

#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

namespace omnisparse::kernel {

/// A set of row classes, as bits.
struct class_mask {
  unsigned bits = 7;
  OMNISPARSE_HD constexpr bool holds(int kind) const noexcept { return (bits >> kind & 1u) != 0; }
};

/// What the three sorting kernels are given.
struct gather_task {
  attention_shape shape;
  inputs<device> in;
  near_field near;
  mask limit = mask::causal;
  plan_view<device> plan;
  class_mask classes;  ///< those that get tiles
  row_schedule schedule;
  int const* some = nullptr;  ///< [1], where not null: 0 says that no row is of these classes

  __device__ bool is_idle() const noexcept { return some != nullptr && *some == 0; }
};

/// How many rows of each class, 21 bits each, so that one sum counts all three.
struct class_counts {
  static constexpr int width = 21;
  static_assert(row_schedule::part_rows < 1 << width);

  OMNISPARSE_HD static constexpr unsigned long long one(int kind) noexcept {
    return 1ull << kind * width;
  }
  OMNISPARSE_HD static constexpr int of(unsigned long long counts, int kind) noexcept {
    return static_cast<int>(counts >> kind * width & ((1u << width) - 1u));
  }
};

/// The first entry of an ascending list that is not below `key`.
OMNISPARSE_HD constexpr int lower_bound(int const* list, int size, int key) noexcept {
  int low = 0;
  for (int n = size; n > 0;) {
    int const half = n / 2;
    if (list[low + half] < key) {
      low += half + 1;
      n -= half + 1;
    } else {
      n = half;
    }
  }
  return low;
}

/// The rows that one block of the sorting kernels reads: `Each` neighbours a thread.
template <int Threads>
struct gather_part {
  static constexpr int each = row_schedule::part_rows / Threads;
  sequence_extent extent;
  int list, part, b, c, g;
  int rows;   ///< existing rows of the unit, times the group
  int first;  ///< of this thread

  __device__ explicit gather_part(gather_task const& t) noexcept {
    row_schedule const& s = t.schedule;
    list = static_cast<int>(blockIdx.x) / s.parts;
    part = static_cast<int>(blockIdx.x) % s.parts;
    g = list % t.shape.kv_heads;
    c = list / t.shape.kv_heads % s.chunks;
    b = list / t.shape.kv_heads / s.chunks;
    extent = extent_of(t.shape, t.in, b);
    rows = clamped(extent.q_tokens - c * s.chunk_rows, 0, s.chunk_rows) * t.shape.group();
    first = part * s.part_rows + static_cast<int>(threadIdx.x) * each;
  }
  /// The class of row `e` of the unit; -1 where there is no such row. What is no class is lazy.
  __device__ int kind(gather_task const& t, int e) const noexcept {
    if (e >= rows) return -1;
    int const group = t.shape.group();
    int const i = c * t.schedule.chunk_rows + e / group;
    int const kind = static_cast<int>(t.plan.rows_at(b, g * group + e % group)[i]);
    return kind > static_cast<int>(row_class::rescued) ? static_cast<int>(row_class::lazy) : kind;
  }
};

/// Counts each class of a part: counts [units, parts, 3]. Grid: units * parts.
template <int Threads>
__global__ void __launch_bounds__(Threads) count_rows(gather_task t) {
  using reduce = cub::BlockReduce<unsigned long long, Threads>;
  __shared__ typename reduce::TempStorage memory;
  if (t.is_idle()) return;
  gather_part<Threads> const at(t);
  row_schedule const& s = t.schedule;
  unsigned long long counts = 0;
#pragma unroll
  for (int n = 0; n < at.each; ++n) {
    int const kind = at.kind(t, at.first + n);
    if (kind >= 0) counts += class_counts::one(kind);
  }
  counts = reduce(memory).Sum(counts);
  if (threadIdx.x != 0) return;
  for (int kind = 0; kind < 3; ++kind) {
    s.counts[std::int64_t{blockIdx.x} * 3 + kind] = class_counts::of(counts, kind);
  }
  if (at.part == 0) {
    int const size = clamped(t.plan.kept_counts[at.list], 0, t.plan.capacity);
    int const* const kept = t.plan.kept + std::int64_t{at.list} * t.plan.capacity;
    s.list_begin[at.list] = lower_bound(kept, size, t.near.sinks);
  }
}

/// Turns counts into offsets in the unit, and finds where the tiles of each class of each unit
/// begin: rescued rows first, then active, then lazy ones; late units first. One block.
template <int Threads>
__global__ void __launch_bounds__(Threads) scan_rows(gather_task t) {
  using scan = cub::BlockScan<int, Threads>;
  __shared__ typename scan::TempStorage memory;
  row_schedule const& s = t.schedule;
  if (t.is_idle()) {
    if (threadIdx.x == 0) *s.tile_count = 0, *s.next = 0;
    return;
  }
  int const units = s.units(t.shape), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int list = warp; list < units; list += Threads / 32) {
    int total = 0;
    for (int kind = 0; kind < 3; ++kind) {
      int const before = total;
      for (int first = 0; first < s.parts; first += 32) {
        int const part = first + lane;
        std::int64_t const at = (std::int64_t{list} * s.parts + part) * 3 + kind;
        int const count = part < s.parts ? s.counts[at] : 0;
        int sum = count;
        for (int step = 1; step < 32; step *= 2) {
          int const other = __shfl_up_sync(~0u, sum, step);
          if (lane >= step) sum += other;
        }
        if (part < s.parts) s.counts[at] = total + sum - count;
        total += __shfl_sync(~0u, sum, 31);
      }
      // For now the number of tiles of the class.
      if (lane == 0) {
        s.class_tiles[kind * units + list] =
            t.classes.holds(kind) ? ceil_div(total - before, s.tile_rows) : 0;
      }
    }
  }
  __syncthreads();
  int total = 0;
  for (int kind = 2; kind >= 0; --kind) {
    for (int first = 0; first < units; first += Threads) {
      int const list = units - 1 - first - static_cast<int>(threadIdx.x);
      int const count = list >= 0 ? s.class_tiles[kind * units + list] : 0;
      int before = 0, all = 0;
      scan(memory).ExclusiveSum(count, before, all);
      if (list >= 0) s.class_tiles[kind * units + list] = total + before;
      total += all;
      __syncthreads();
    }
  }
  if (threadIdx.x != 0) return;
  *s.tile_count = total;
  *s.next = 0;
  if (t.some == nullptr) *s.some = 0;
}

/// Writes the rows of a part in order, and the first part of a unit its tiles. Grid: units * parts.
template <int Threads>
__global__ void __launch_bounds__(Threads) place_rows(gather_task t) {
  using scan = cub::BlockScan<unsigned long long, Threads>;
  __shared__ typename scan::TempStorage memory;
  if (t.is_idle()) return;
  gather_part<Threads> const at(t);
  row_schedule const& s = t.schedule;
  int const group = t.shape.group();
  int kinds[at.each];
  unsigned long long counts = 0;
#pragma unroll
  for (int n = 0; n < at.each; ++n) {
    kinds[n] = at.kind(t, at.first + n);
    if (kinds[n] >= 0) counts += class_counts::one(kinds[n]);
  }
  scan(memory).ExclusiveSum(counts, counts);

  int const skipped = s.list_begin[at.list];
  int const* const kept = t.plan.kept + std::int64_t{at.list} * t.plan.capacity + skipped;
  int const size = clamped(t.plan.kept_counts[at.list], 0, t.plan.capacity) - skipped;
  std::int64_t const base = s.begin(t.shape, at.list);
#pragma unroll
  for (int n = 0; n < at.each; ++n) {
    if (kinds[n] < 0) continue;
    std::int64_t const to = base + s.counts[std::int64_t{blockIdx.x} * 3 + kinds[n]] +
                            class_counts::of(counts, kinds[n]);
    counts += class_counts::one(kinds[n]);
    if (!t.classes.holds(kinds[n])) continue;
    int const e = at.first + n, i = at.c * s.chunk_rows + e / group;
    s.rows[to] = i * group + e % group;
    if (kinds[n] != static_cast<int>(row_class::active)) continue;
    key_range const window = t.near.window_of(at.extent.position(i), at.extent.kv_tokens, t.limit);
    s.left[to] = lower_bound(kept, size, window.begin);
    if (s.right != nullptr) s.right[to] = lower_bound(kept, size, window.end);
  }

  if (at.part != 0) return;
  int const units = s.units(t.shape);
  int const* const offsets = s.counts + std::int64_t{at.list} * s.parts * 3;
  int const ends[3] = {offsets[1], offsets[2], at.rows};
  for (int kind = 0; kind < 3; ++kind) {
    if (!t.classes.holds(kind)) continue;
    int const begin = offsets[kind], count = ends[kind] - begin;
    int const tiles = ceil_div(count, s.tile_rows), to = s.class_tiles[kind * units + at.list];
    for (int n = static_cast<int>(threadIdx.x); n < tiles; n += Threads) {
      int const first = (tiles - 1 - n) * s.tile_rows;  // longest first
      s.tiles[to + n] = {at.list, begin + first, smaller(s.tile_rows, count - first),
                         static_cast<row_class>(kind)};
    }
  }
}

}  // namespace omnisparse::kernel
