/// @file
/// How the rows of a tile come into shared memory and go back: in order by the copy engine, or
/// gathered one by one.
#pragma once

#include <omnisparse/backend/cuda/collective/attend_task.cuh>
#include <omnisparse/backend/cuda/collective/online_softmax.cuh>
#include <omnisparse/backend/cuda/ptx/cp_async.cuh>
#include <omnisparse/backend/cuda/ptx/narrow.cuh>
#include <omnisparse/backend/cuda/ptx/tma.cuh>
#include <omnisparse/backend/cuda/ptx/warpgroup.cuh>
#include <omnisparse/core/merge.hpp>

namespace omnisparse::collective {

/// Copies the rows of an item to a q tile, and what they see beside them: by 64 threads, of which
/// this is number `thread`. Rows beyond the last are zeros, and so is what lies beyond their end.
template <class T, int D, class Block>
__device__ inline void gather_tile(attend_task<T> const& task, attend_item const& item,
                                   Block& shared, int slot, int thread) {
  using tile = typename Block::q_tile;
  constexpr int chunks = D / 8, at_once = 32 / chunks;  // 16-byte chunks of a row; rows of a pass
  int const lane = thread % 32;
  // A warp's rows, 32 at a time: first where they are, then their bytes. Few registers live on.
#pragma unroll 1
  for (int r = thread; r < Block::tune.rows(); r += Block::gather_threads) {
    gathered_row row{-1, 0, item.list_size};
    T const* from = nullptr;
    if (r < item.rows) {
      row = gathered_range(task, {item.q_tokens, item.kv_tokens}, item.place + r, item.list_size);
      int const group = task.call.shape.group();
      int const i = row.row / group, head = item.head + row.row - i * group;
      from = task.call.q.at(item.batch, head, i);
      if (task.keys == attend_keys::list && !task.call.out.is_null()) {  // is read at the end
        ptx::prefetch(task.call.out.at(item.batch, head, i));
        if (D > 64) ptx::prefetch(task.call.out.at(item.batch, head, i, 64));
      }
    }
    shared.rows[slot][r] = row;
    shared.sources[r] = from;
  }
  __syncwarp();
#pragma unroll 1
  for (int first = thread - lane; first < Block::tune.rows(); first += Block::gather_threads) {
#pragma unroll 4
    for (int n = lane / chunks; n < 32; n += at_once) {
      T const* const from = static_cast<T const*>(shared.sources[first + n]);
      bool const inside = from != nullptr && lane % chunks * 8 < task.call.shape.dim;
      ptx::cp_async_16(shared.q[slot] + tile::offset(first + n, lane % chunks),
                       inside ? from + lane % chunks * 8 : task.call.q.data, inside ? 16 : 0);
    }
  }
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  ptx::fence_shared_for_async();
  __syncwarp();  // sources may be overwritten
}

/// Makes averages of a row's sums, and its sum of weights 1, where `bound_averages` says so.
template <class T, class Group>
__device__ __forceinline__ void bound_row(Group& group, int half) {
  if constexpr (Group::attends) {
    constexpr int dim = Group::q_tile::panels * 64;
    auto const each = [&](auto const& act) {
#pragma unroll
      for (int e = 2 * half; e < dim / 2; e += 4) act(group.sums[e]), act(group.sums[e + 1]);
    };
    if (bound_averages<T>(group.softmax.sum[half], each)) group.softmax.sum[half] = 1.f;
  }
}

/// Writes the lse of a warpgroup's rows in order, and puts its part of out where its q rows were,
/// for the copy engine to fetch once every warp has arrived at `done`.
template <class Group, class T>
__device__ __forceinline__ void hand_over_tile(Group& group, attend_task<T> const& task,
                                               attend_item const& item, int slot, int barrier,
                                               ptx::mbarrier& done) {
  using tile = typename Group::q_tile;
  constexpr int dim = tile::panels * 64;
  float weight[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int const i = item.first_row + group.row(half);
    bool const sees = i < item.q_tokens && !group.softmax.is_empty(half);
    if (group.lane() % 4 == 0 && i < task.call.shape.q_tokens) {
      task.lse(item.batch, item.head, i) = sees ? group.softmax.lse(half, task.terms) : empty_lse();
    }
    if (sees) bound_row<T>(group, half);
    weight[half] = sees ? 1.f / group.softmax.sum[half] : 0.f;
    if constexpr (Group::attends) {
      if (!sees) {  // a row that does not exist may have met NaN
#pragma unroll
        for (int e = 2 * half; e < dim / 2; e += 4) group.sums[e] = group.sums[e + 1] = 0.f;
      }
    }
  }
  if constexpr (Group::attends) {
    ptx::wait_at(barrier, 128);  // all warps are done with q
    auto const& o = group.sums;
    std::uint32_t const base = ptx::shared_address(group.shared.q[slot] + group.group * 8192);
    int const row = group.thread() / 32 * 16 + group.lane() % 16;
#pragma unroll
    for (int s = 0; s < dim / 16; ++s) {
      int const chunk = 2 * s + group.lane() / 16;
      ptx::store_matrices(base + static_cast<std::uint32_t>(tile::offset(row, chunk)),
                          ptx::pair_of<T>(o[8 * s] * weight[0], o[8 * s + 1] * weight[0]),
                          ptx::pair_of<T>(o[8 * s + 2] * weight[1], o[8 * s + 3] * weight[1]),
                          ptx::pair_of<T>(o[8 * s + 4] * weight[0], o[8 * s + 5] * weight[0]),
                          ptx::pair_of<T>(o[8 * s + 6] * weight[1], o[8 * s + 7] * weight[1]));
    }
    ptx::fence_shared_for_async();
  }
  __syncwarp();
  if (group.lane() == 0) done.arrive();
}

/// Writes a warpgroup's part of a split tile, for merge_splits.
template <class Group, class T>
__device__ __forceinline__ void store_split(Group& group, attend_task<T> const& task,
                                            attend_item const& item) {
  key_splits const& splits = task.splits;
  constexpr int dim = Group::q_tile::panels * 64;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int const r = group.row(half);
    std::int64_t const row = std::int64_t{item.slot} * Group::block::tune.rows() + r;
    float const sum = group.softmax.sum[half];
    bool const empty = group.softmax.is_empty(half);
    if (r >= item.rows) continue;
    if (group.lane() % 4 == 0) splits.lse[row] = group.softmax.lse(half, task.terms);
    if constexpr (Group::attends) {
      auto* const out = reinterpret_cast<float2*>(splits.out + row * dim) + group.lane() % 4;
#pragma unroll
      for (int e = 2 * half; e < dim / 2; e += 4) {
        out[e / 4 * 4] = empty ? float2{} : float2{group.sums[e] / sum, group.sums[e + 1] / sum};
      }
    }
  }
}

/// Writes what a warpgroup computed for gathered rows, where it stands: over what is there, or
/// merged with it through lse. An empty list changes nothing.
template <class Group, class T>
__device__ __forceinline__ void scatter_tile(Group& group, attend_task<T> const& task,
                                             attend_item const& item, int slot) {
  constexpr int words = Group::attends ? Group::q_tile::panels * 8 : 1;  // of a row, a thread's
  bool const merges = task.keys == attend_keys::list;
  int const per_head = task.call.shape.group(), dim = task.call.shape.dim;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int const row = group.shared.rows[slot][group.row(half)].row;
    bool const empty = group.softmax.is_empty(half);
    if (row < 0 || (merges && empty)) continue;
    int const head = item.head + row % per_head, i = row / per_head;
    float* const lse = task.lse.at(item.batch, head, i);
    std::uint32_t* out = nullptr;
    std::uint32_t before[words] = {};
    if constexpr (Group::attends) {
      out = reinterpret_cast<std::uint32_t*>(task.call.out.at(item.batch, head, i)) +
            group.lane() % 4;
#pragma unroll
      for (int w = 0; w < words; ++w) {
        if (merges && 8 * w < dim) before[w] = out[4 * w];
      }
    }
    float const theirs = merges ? *lse : empty_lse(), mine = group.softmax.lse(half, task.terms);
    float const whole = merge_lse(theirs, mine);
    if (!empty) bound_row<T>(group, half);
    float const sum = group.softmax.sum[half];
    float const weight = empty ? 0.f : merge_weight(mine, whole) / sum;
    float const kept = merge_weight(theirs, whole);
    __syncwarp(0xfu << (group.lane() & 28));  // all four threads of the row have read its lse
    if (group.lane() % 4 == 0) *lse = whole;
    if constexpr (Group::attends) {
#pragma unroll
      for (int w = 0; w < words; ++w) {
        int const e = 4 * w + 2 * half;
        float const low = empty ? 0.f : group.sums[e] * weight;
        float const high = empty ? 0.f : group.sums[e + 1] * weight;
        if (8 * w >= dim) continue;
        out[4 * w] = ptx::pair_of<T>(low + kept * ptx::low_of<T>(before[w]),
                                     high + kept * ptx::high_of<T>(before[w]));
      }
    }
  }
}

}  // namespace omnisparse::collective
