/// @file
/// What the warps of a Hopper attend block share: its shared memory, its barriers, its work items.
#pragma once

#include <omnisparse/backend/cuda/collective/key_walk.hpp>
#include <omnisparse/backend/cuda/collective/swizzled_tile.cuh>
#include <omnisparse/backend/cuda/ptx/mbarrier.cuh>
#include <omnisparse/backend/cuda/tuning/hopper_attend.cuh>

#include <cstdint>

namespace omnisparse::collective {

/// A place in a ring of `Size` buffers: which one, and the parity of its current turn.
template <int Size>
struct ring_place {
  int slot = 0;
  std::uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++slot == Size) {
      slot = 0;
      parity ^= 1u;
    }
  }
};

/// Two barriers for each buffer of a ring: producers wait for empty, consumers for full.
template <int Size>
struct ring_barriers {
  ptx::mbarrier full[Size], empty[Size];

  __device__ __forceinline__ void init(int producers, int consumers) {
    for (int i = 0; i < Size; ++i) {
      full[i].init(static_cast<std::uint32_t>(producers));
      empty[i].init(static_cast<std::uint32_t>(consumers));
    }
  }
  __device__ __forceinline__ void wait_full(ring_place<Size> const& at) {
    full[at.slot].wait(at.parity);
  }
  /// A fresh ring counts as empty.
  __device__ __forceinline__ void wait_empty(ring_place<Size> const& at) {
    empty[at.slot].wait(at.parity ^ 1u);
  }
};

/// One row tile and the keys that it reads. Made by one thread, read by all roles, so that they
/// agree on the number of key tiles.
struct attend_item {
  int rows = 0;       ///< that exist; -1: there is no more work
  int first_row = 0;  ///< in order: i of the first row
  int batch = 0;
  int head = 0;      ///< in order: the query head; gathered: the first of the group
  int key_head = 0;  ///< coordinates of K and V: the KV head and sequence, or list and 0
  int key_batch = 0;
  int q_tokens = 0;  ///< rows and keys of the sequence that exist
  int kv_tokens = 0;
  std::int64_t place = 0;            ///< gathered: of the first row, in the schedule
  int list_size = 0;                 ///< entries of the packed list
  int slot = -1;                     ///< gathered: of a split tile, where its part goes
  key_range keys = {0, 0x7fffffff};  ///< gathered: of the first part of the walk, for this item
  int few_keys = 0;  ///< sinks that are read last, as a narrow tile; 0: there is none
  key_walk walk = {};
};

/// Which keys a stage of the K ring holds.
struct loaded_keys {
  int first;  ///< may be negative
  int part;   ///< of the walk
};

/// One gathered row: i * group + head in group, -1 where there is none, and what it sees of the two
/// parts of the walk: [0, left) and [right, list_size).
struct gathered_row {
  int row, left, right;
};

/// The shared memory of a block. K and V have barriers of their own, so that scores are computed
/// while V is on its way.
template <int D, bool Gathered, bool Values>
struct attend_block {
  static constexpr tuning::hopper_attend tune = tuning::hopper_attend_for<D>();
  static constexpr int stages = tuning::hopper_stages, slots = tuning::hopper_item_slots;
  using q_tile = swizzled_tile<tune.rows(), D>;
  using kv_tile = swizzled_tile<tuning::hopper_keys, D>;
  using few_tile = swizzled_tile<tuning::hopper_few_keys, D>;
  static constexpr int gather_threads = 64;  ///< warps 2 and 3 of the producer

  alignas(1024) unsigned char q[slots][q_tile::bytes];
  alignas(1024) unsigned char k[stages][kv_tile::bytes];
  alignas(1024) unsigned char v[Values ? stages : 1][Values ? kv_tile::bytes : 1024];
  gathered_row rows[slots][Gathered ? tune.rows() : 1];
  void const* sources[Gathered ? tune.rows() : 1];  ///< where the rows on their way are
  attend_item items[slots];
  loaded_keys loaded[stages];
  ring_barriers<slots> item_ring, q_ring;  ///< an item and its rows have the same slot
  ptx::mbarrier out_full[slots];           ///< in order: out stands where q was
  ring_barriers<stages> k_ring, v_ring;

  __device__ __forceinline__ void init_barriers() {
    q_ring.init(Gathered ? gather_threads : 1, Gathered ? tune.groups : 1);
    for (ptx::mbarrier& full : out_full) full.init(tune.groups * 4);
    k_ring.init(1, tune.groups * 4);
    v_ring.init(1, tune.groups * 4);
    item_ring.init(1, tune.groups * 4 + 1 + (Gathered ? gather_threads : 1));
    ptx::publish_barriers();
  }
};

}  // namespace omnisparse::collective
