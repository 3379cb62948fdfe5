/// @file
/// The Hopper attend kernel: who does what, and when. sm_90a.
#pragma once

#include <omnisparse/backend/cuda/collective/attend_group.cuh>
#include <omnisparse/backend/cuda/collective/attend_rows.cuh>
#include <omnisparse/backend/cuda/ptx/opaque.cuh>

namespace omnisparse::kernel {

/// The tensors of a launch as the copy engine sees them: boxes of 64 values by a tile's rows.
struct attend_maps {
  CUtensorMap q, out;        ///< rows in order only; boxes of a row tile
  CUtensorMap k, v;          ///< boxes of a key tile
  CUtensorMap few_k, few_v;  ///< near field only; boxes of a narrow key tile
};

/// Bytes of dynamic shared memory: the block's, and what it takes to align it.
template <int D, bool Gathered, bool Values>
inline constexpr int attend_shared_bytes =
    static_cast<int>(sizeof(collective::attend_block<D, Gathered, Values>)) + 1024;

/// The same object, from where the compiler cannot tell: it computes addresses anew in each round
/// of a loop, in place of keeping all of them in the few registers of a producer.
template <class Object>
__device__ __forceinline__ Object& anew(Object& x) {
  return *reinterpret_cast<Object*>(reinterpret_cast<char*>(&x) + ptx::opaque(0));
}

/// Warp 1 of the producer: takes items from the counter until none is left. One thread.
template <bool Gathered, int D, class Block, class T>
__device__ __forceinline__ void make_items(Block& block, collective::attend_task<T> const& task) {
  collective::ring_place<tuning::hopper_item_slots> at;
  for (;; at.advance()) {
    anew(block).item_ring.wait_empty(at);
    int const n = atomicAdd(task.counter, 1);
    if constexpr (Gathered) {
      row_tile const tile = collective::gathered_tile(task, n);
      collective::make_gathered_item(task, n, tile, anew(block).items[at.slot]);
    } else {
      collective::make_ordered_item(task, n, Block::tune.rows(), block.items[at.slot]);
    }
    bool const over = block.items[at.slot].rows < 0;
    anew(block).item_ring.full[at.slot].arrive();
    if (over) return;
  }
}

/// Copies the panels of a tile of K or V.
template <class Tile>
__device__ __forceinline__ void load_keys(unsigned char* to, CUtensorMap const& map,
                                          ptx::mbarrier& full, int key,
                                          collective::attend_item const& item,
                                          ptx::cache_hint hint) {
  full.arrive_expecting(Tile::bytes);
#pragma unroll
  for (int p = 0; p < Tile::panels; ++p) {
    ptx::load_tile(to + p * Tile::panel_bytes, &map, &full, p * 64, key, item.key_head,
                   item.key_batch, hint);
  }
}

/// Warp 0 of the producer: starts the copies of q (rows in order), K and V. One thread.
template <bool Gathered, bool Values, class Block>
__device__ __forceinline__ void load_items(Block& shared, attend_maps const& maps) {
  using q_tile = typename Block::q_tile;
  ptx::cache_hint const keep = ptx::cache_hint::keep(), once = ptx::cache_hint::read_once();
  collective::ring_place<tuning::hopper_item_slots> at;
  collective::ring_place<Block::stages> stage;
  for (;; at.advance()) {
    shared.item_ring.wait_full(at);
    collective::attend_item const& item = shared.items[at.slot];
    if (item.rows < 0) return;
    if constexpr (!Gathered) {
      shared.q_ring.wait_empty(at);
      ptx::mbarrier& full = shared.q_ring.full[at.slot];
      full.arrive_expecting(q_tile::bytes);
      for (int p = 0; p < q_tile::panels; ++p) {
        ptx::load_tile(shared.q[at.slot] + p * q_tile::panel_bytes, &maps.q, &full, p * 64,
                       item.first_row, item.head, item.batch, once);
      }
    }
    int const tiles = item.walk.tiles();
#pragma unroll 1
    for (int n = 0; n < tiles; ++n, stage.advance()) {
      int const key = item.walk.first_key(n, tuning::hopper_keys), s = stage.slot;
      shared.k_ring.wait_empty(stage);
      shared.loaded[s] = {key, item.walk.part_of(n)};
      load_keys<typename Block::kv_tile>(shared.k[s], maps.k, shared.k_ring.full[s], key, item,
                                         keep);
      if constexpr (Values) {
        shared.v_ring.wait_empty(stage);
        load_keys<typename Block::kv_tile>(shared.v[s], maps.v, shared.v_ring.full[s], key, item,
                                           keep);
      }
    }
    if (!Gathered && item.few_keys != 0) {
      int const s = stage.slot;
      shared.k_ring.wait_empty(stage);
      load_keys<typename Block::few_tile>(shared.k[s], maps.few_k, shared.k_ring.full[s], 0, item,
                                          keep);
      if constexpr (Values) {
        shared.v_ring.wait_empty(stage);
        load_keys<typename Block::few_tile>(shared.v[s], maps.few_v, shared.v_ring.full[s], 0, item,
                                            keep);
      }
      stage.advance();
    }
    shared.item_ring.empty[at.slot].arrive();
  }
}

/// Warp 2 of the producer, rows in order: starts the copies of out from where the consumers put it,
/// so that none of them waits for the copy engine. One thread.
template <bool Values, class Block>
__device__ __forceinline__ void store_items(Block& shared, attend_maps const& maps) {
  using q_tile = typename Block::q_tile;
  collective::ring_place<tuning::hopper_item_slots> at;
  for (;; at.advance()) {
    shared.item_ring.wait_full(at);
    collective::attend_item const& item = shared.items[at.slot];
    if (item.rows < 0) return;
    shared.out_full[at.slot].wait(at.parity);
    if constexpr (Values) {
      for (int p = 0; p < q_tile::panels; ++p) {
        ptx::store_tile(&maps.out, shared.q[at.slot] + p * q_tile::panel_bytes, p * 64,
                        item.first_row, item.head, item.batch);
      }
      ptx::commit_stores();
      ptx::wait_for_store_reads();
    }
    shared.q_ring.empty[at.slot].arrive();
    shared.item_ring.empty[at.slot].arrive();
  }
}

/// Warps 2 and 3 of the producer: gather the rows of each item.
template <int D, class Block, class T>
__device__ __forceinline__ void gather_items(Block& block, collective::attend_task<T> const& task) {
  collective::ring_place<tuning::hopper_item_slots> at;
  for (;; at.advance()) {
    Block& shared = anew(block);
    shared.item_ring.wait_full(at);
    collective::attend_item const& item = shared.items[at.slot];
    if (item.rows < 0) return;
    shared.q_ring.wait_empty(at);
    int const thread = static_cast<int>(ptx::opaque(threadIdx.x)) - 64;
    collective::gather_tile<T, D>(task, item, shared, at.slot, thread);
    shared.q_ring.full[at.slot].arrive();
    shared.item_ring.empty[at.slot].arrive();
  }
}

/// A consumer warpgroup: attends to each item with its 64 rows.
template <class T, int D, bool Gathered, bool Values, class Block>
__device__ __forceinline__ void attend_items(Block& shared, attend_maps const& maps,
                                             collective::attend_task<T> const& task,
                                             int group_index) {
  collective::attend_group<T, D, Gathered, Values> group(shared, group_index, task.terms);
  int const barrier = 1 + Block::tune.groups + group_index;
  collective::ring_place<tuning::hopper_item_slots> at;
  for (;; at.advance()) {
    shared.item_ring.wait_full(at);
    collective::attend_item const& item = shared.items[at.slot];
    if (collective::uniform(item.rows) < 0) return;
    shared.q_ring.wait_full(at);
    group.attend(item, at.slot, [&](int half, int part) -> key_range {
      int const n = group.row(half);
      if constexpr (Gathered) {
        return collective::seen_of(shared.rows[at.slot][n], item, part);
      } else {
        return collective::ordered_range(task, item, n, part);
      }
    });
    if constexpr (Gathered) {
      if (item.slot < 0) collective::scatter_tile(group, task, item, at.slot);
      else collective::store_split(group, task, item);
      ptx::wait_at(barrier, 128);
      if (group.thread() == 0) shared.q_ring.empty[at.slot].arrive();
    } else {
      collective::hand_over_tile(group, task, item, at.slot, barrier, shared.out_full[at.slot]);
    }
    if (group.lane() == 0) shared.item_ring.empty[at.slot].arrive();
  }
}

/// Attends for every item of a task. Grid: one block a multiprocessor, or fewer; they take items as
/// they come, which never changes what an item's rows become. Without Values only lse is written.
template <class T, int D, bool Gathered, bool Values>
__global__ void __launch_bounds__(tuning::hopper_attend_for<D>().threads(), 1)
    hopper_attend(attend_maps const __grid_constant__ maps,
                  collective::attend_task<T> const __grid_constant__ task) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using block = collective::attend_block<D, Gathered, Values>;
  extern __shared__ unsigned char attend_bytes[];
  std::uint32_t const begin = ptx::shared_address(attend_bytes);
  block& shared = *reinterpret_cast<block*>(attend_bytes + (round_up(begin, 1024u) - begin));
  if (threadIdx.x == 0) shared.init_barriers();
  __syncthreads();
  int const warp = collective::uniform(static_cast<int>(threadIdx.x) / 32);
  if (warp < 4) {
    ptx::shrink_registers<block::tune.producer_registers>();
    bool const first_lane = threadIdx.x % 32 == 0;
    if (warp == 0 && first_lane) load_items<Gathered, Values>(shared, maps);
    if (warp == 1 && first_lane) make_items<Gathered, D>(shared, task);
    if constexpr (Gathered) {
      if (warp >= 2) gather_items<D>(shared, task);
    } else {
      if (warp == 2 && first_lane) store_items<Values>(shared, maps);
    }
  } else {
    ptx::grow_registers<block::tune.consumer_registers>();
    attend_items<T, D, Gathered, Values>(shared, maps, task, warp / 4 - 1);
  }
#endif
}

}  // namespace omnisparse::kernel
