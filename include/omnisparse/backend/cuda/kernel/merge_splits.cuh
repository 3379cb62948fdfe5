/// @file
/// Puts the partial results of split row tiles together.
#pragma once

#include <omnisparse/backend/cuda/collective/attend_rows.cuh>
#include <omnisparse/core/merge.hpp>

namespace omnisparse::kernel {

inline constexpr int merge_threads = 256;

/// Merges the splits of every row of a task, in a fixed order: overwrites out and lse; without
/// Values lse only. A warp a row, any grid. Does nothing where the task's tiles were not split.
template <class T, int D, bool Values>
__global__ void __launch_bounds__(merge_threads)
    merge_splits(collective::attend_task<T> const __grid_constant__ task) {
  row_schedule const& schedule = task.schedule;
  attention_shape const& shape = task.call.shape;
  int const tiles = *schedule.tile_count, splits = task.splits.count(tiles);
  if (splits == 1) return;
  static_assert(collective::key_splits::limit <= 32);
  constexpr int per_block = merge_threads / 32;
  int const lane = static_cast<int>(threadIdx.x) % 32, group = shape.group();
  int const first = static_cast<int>(blockIdx.x) * per_block + static_cast<int>(threadIdx.x) / 32;
  for (int n = first; n < tiles * schedule.tile_rows;
       n += static_cast<int>(gridDim.x) * per_block) {
    int const t = n / schedule.tile_rows, r = n % schedule.tile_rows;
    row_tile const tile = schedule.tile(shape, t);
    if (r >= tile.count) continue;
    auto const slot_row = [&](int split) {
      return (std::int64_t{split} * tiles + t) * schedule.tile_rows + r;
    };
    // A lane a split.
    float const own = lane < splits ? task.splits.lse[slot_row(lane)] : empty_lse();
    float whole = own;
    for (int step = 1; step < 32; step *= 2) {
      whole = merge_lse(whole, __shfl_xor_sync(~0u, whole, step));
    }
    float const own_weight = merge_weight(own, whole);
    int const row = schedule.row(shape, tile.list, tile.first + r), i = row / group;
    int const b = tile.list / shape.kv_heads / schedule.chunks;
    int const head = tile.list % shape.kv_heads * group + row % group;
    if (lane == 0) task.lse(b, head, i) = whole;
    if constexpr (Values) {
      auto* const out = reinterpret_cast<std::uint32_t*>(task.call.out.at(b, head, i));
#pragma unroll
      for (int pair = lane; pair < D / 2; pair += 32) {
        float low = 0.f, high = 0.f;
        for (int s = 0; s < splits; ++s) {
          float const weight = __shfl_sync(~0u, own_weight, s);
          float const* const part = task.splits.out + slot_row(s) * D + 2 * pair;
          low += weight * part[0];
          high += weight * part[1];
        }
        if (2 * pair < shape.dim) {
          out[pair] = ptx::pair_of<T>(collective::bounded_average<T>(low),
                                      collective::bounded_average<T>(high));
        }
      }
    }
  }
}

}  // namespace omnisparse::kernel
