/// @file
/// The second pass of probing on Hopper: the sum of each key over the probe rows. sm_90a.
#pragma once

#include <omnisparse/backend/cuda/collective/attend_block.cuh>
#include <omnisparse/backend/cuda/collective/attend_group.cuh>
#include <omnisparse/backend/cuda/collective/log_sum.cuh>
#include <omnisparse/backend/cuda/kernel/probe_rows.cuh>
#include <omnisparse/backend/cuda/ptx/cp_async.cuh>
#include <omnisparse/backend/cuda/ptx/ldmatrix.cuh>
#include <omnisparse/backend/cuda/ptx/tma.cuh>
#include <omnisparse/backend/cuda/ptx/warpgroup.cuh>

#include <cub/block/block_scan.cuh>

namespace omnisparse::kernel {

/// The shared memory of a block: key tiles on their way, and tiles of pairs. Up to `pair_slots` of
/// those are loaded once for all keys of a list; more go round for every key tile.
template <int D>
struct probe_block {
  static constexpr int groups = 3;          ///< consumer warpgroups, of 64 keys each
  static constexpr int keys = 64 * groups;  ///< of a key tile
  static constexpr int pairs = 64;          ///< of a tile of pairs
  static constexpr int pair_slots = 7;      ///< 64 probe rows of a group of 7 stay
  static constexpr int key_stages = D == 64 ? 3 : 2;
  static constexpr int threads = 128 * (groups + 1), gather_threads = 64;
  static constexpr int ahead = 3;  ///< tiles of pairs on their way
  static constexpr int producer_registers = 80, consumer_registers = 144;  ///< together 65536
  using key_tile = collective::swizzled_tile<keys, D>;
  using pair_tile = collective::swizzled_tile<pairs, D>;
  using scan = cub::BlockScan<int, threads>;
  /// What a tile of pairs is to the keys.
  struct tile_columns : probe_columns<pairs> {
    key_range low, high;  ///< the windows of the first pair and of the last
    int count;            ///< of its pairs
  };

  alignas(1024) unsigned char k[key_stages][key_tile::bytes];
  alignas(1024) unsigned char q[pair_slots][pair_tile::bytes];
  tile_columns columns[pair_slots];
  typename scan::TempStorage scanning;
  int first_list, first_tile;  ///< where the share of this block begins
  collective::ring_barriers<key_stages> k_ring;
  collective::ring_barriers<pair_slots> q_ring;
};

/// A launch of the second pass. Lives on the host, travels by value.
template <class T, class Scorer>
struct probe_task {
  attention_shape shape;
  inputs<device> in;
  tensor_view<T const, device> q;
  near_field near;
  mask limit = mask::causal;
  chunk_range range;
  probe_rows probes;
  scores_view scores;
  Scorer scorer;
  collective::logit_scale scale;

  /// Key tiles of a list; the keys beyond are far for no probe row.
  __device__ int tiles_of(int list, int tile_keys) const {
    return ceil_div(probes.far_ends[list / shape.kv_heads], tile_keys);
  }
};

/// Key tiles of one list, one after another, and the pairs that they meet.
template <class Task>
struct probe_segment {
  Task const& task;
  int list, b, g, unit;
  int first_tile, tiles;
  int pairs;
  sequence_extent extent;

  __device__ probe_segment(Task const& t, int l, int first, int count)
      : task(t), list(l), first_tile(first), tiles(count) {
    list_place const at = list_place::of(l, t.shape, t.range);
    b = at.b, g = at.g, unit = at.unit;
    pairs = t.probes.counts[unit] * t.probes.group;
    extent = extent_of(t.shape, t.in, b);
  }
  __device__ key_range window(int2 place) const {
    return task.near.window_of(extent.position(place.x), extent.kv_tokens, task.limit);
  }
};

/// The part of all key tiles of a launch that a block sums: the lists one after the other, cut into
/// even shares, so that blocks end together and seldom change their list.
struct probe_share {
  int list, tile;  ///< the first
  int tiles;       ///< how many, into the lists that follow

  /// By all threads of the block.
  template <class Block, class Task>
  __device__ static probe_share of(Block& shared, Task const& task) {
    using scan = typename Block::scan;
    int const lists = task.range.lists(task.shape), thread = static_cast<int>(threadIdx.x);
    auto const tiles_of = [&](int list) {
      return list < lists ? task.tiles_of(list, Block::keys) : 0;
    };
    int all = 0, before = 0, sum = 0;
    for (int first = 0; first < lists; first += Block::threads) {
      scan(shared.scanning).ExclusiveSum(tiles_of(first + thread), before, sum);
      all += sum;
      __syncthreads();
    }
    auto const cut = [&](unsigned n) {
      return static_cast<int>(static_cast<long long>(all) * n / gridDim.x);
    };
    int const begin = cut(blockIdx.x), end = cut(blockIdx.x + 1);
    all = 0;
    for (int first = 0; first < lists; first += Block::threads) {
      int const tiles = tiles_of(first + thread);
      scan(shared.scanning).ExclusiveSum(tiles, before, sum);
      before += all;
      if (before <= begin && begin < before + tiles) {
        shared.first_list = first + thread;
        shared.first_tile = begin - before;
      }
      all += sum;
      __syncthreads();
    }
    return {shared.first_list, shared.first_tile, end - begin};
  }

  /// Calls act(segment) for the tiles of each list.
  template <int Keys, class Task, class Act>
  __device__ __forceinline__ void each_segment(Task const& task, Act const& act) const {
    int l = list, first = tile;
    for (int rest = tiles; rest > 0; ++l, first = 0) {
      int const count = smaller(rest, task.tiles_of(l, Keys) - first);
      if (count == 0) continue;
      act(probe_segment<Task>(task, l, first, count));
      rest -= count;
    }
  }
};

/// Warp 0 of the producer: copies the key tiles. One thread.
template <class Block, class Task>
__device__ __forceinline__ void load_probed_keys(Block& shared, CUtensorMap const& map,
                                                 Task const& task, probe_share const& share) {
  using tile = typename Block::key_tile;
  ptx::cache_hint const keep = ptx::cache_hint::keep();
  collective::ring_place<Block::key_stages> at;
  share.each_segment<Block::keys>(task, [&](auto const& segment) {
    for (int n = 0; n < segment.tiles; ++n, at.advance()) {
      shared.k_ring.wait_empty(at);
      ptx::mbarrier& full = shared.k_ring.full[at.slot];
      full.arrive_expecting(tile::bytes);
      for (int p = 0; p < tile::panels; ++p) {
        ptx::load_tile(shared.k[at.slot] + p * tile::panel_bytes, &map, &full, p * 64,
                       (segment.first_tile + n) * Block::keys, segment.g, segment.b, keep);
      }
    }
  });
}

/// Warp 1 of the producer: scores the keys behind the tiles of each list, a part of them in each
/// block.
template <class Block, class Task>
__device__ __forceinline__ void score_unprobed(Task const& task) {
  constexpr int part = 4096;
  int const keys = task.scores.keys, parts = ceil_div(keys, part);
  for (int n = blockIdx.x; n < task.range.lists(task.shape) * parts; n += gridDim.x) {
    int const list = n / parts, begin = n % parts * part;
    int const first = larger(begin, task.tiles_of(list, Block::keys) * Block::keys);
    for (int j = first + static_cast<int>(threadIdx.x) % 32; j < smaller(begin + part, keys);
         j += 32) {
      write_score(task.scores, task.scorer, list, j, {});
    }
  }
}

/// Warps 2 and 3 of the producer: gather tiles of pairs, this is number `thread` of 64.
template <int D, class Block, class Task>
__device__ __forceinline__ void gather_pairs(Block& shared, Task const& task,
                                             probe_share const& share, int thread) {
  using tile = typename Block::pair_tile;
  constexpr int chunks = D / 8, at_once = 32 / chunks;  // 16-byte chunks of a row; rows of a pass
  int const lane = thread % 32, warp_row = thread - lane;
  bool const inside = lane % chunks * 8 < task.shape.dim;
  collective::ring_place<Block::pair_slots> at, behind;
  int on_their_way = 0;
  auto const publish = [&] {
    ptx::fence_shared_for_async();
    shared.q_ring.full[behind.slot].arrive();
    behind.advance();
    --on_their_way;
  };
  share.each_segment<Block::keys>(task, [&](auto const& segment) {
    int const count = ceil_div(segment.pairs, Block::pairs);
    int const loads = count <= Block::pair_slots ? count : count * segment.tiles;
    int2 const* const places = task.probes.places_of(segment.unit);
    auto const place_of = [&](int n) {
      return places[smaller(n % count * Block::pairs + thread, segment.pairs - 1)];
    };
    auto const lse_of = [&](int2 place) {
      return task.probes.lse_of(task.shape, segment.b, segment.g, place) * collective::log2_e;
    };
    // What the next tiles need is asked for ahead.
    int2 place = place_of(0), next = place_of(1);
    float lse = lse_of(place);
    for (int n = 0; n < loads; ++n, at.advance()) {
      int const first = n % count * Block::pairs, pair = first + thread;
      int const last = smaller(first + Block::pairs, segment.pairs) - 1;
      bool const exists = pair <= last;
      key_range const window = segment.window(place);
      int const head = segment.g * task.probes.group + place.y;
      auto const from = reinterpret_cast<unsigned long long>(task.q.at(segment.b, head, place.x));
      float const own_lse = lse;
      unsigned const telling = __ballot_sync(~0u, exists && tells(own_lse));
      place = next;
      next = place_of(n + 2);
      lse = lse_of(place);
      shared.q_ring.wait_empty(at);
#pragma unroll 4
      for (int r = lane / chunks; r < 32; r += at_once) {
        auto const* const row = reinterpret_cast<uint4 const*>(__shfl_sync(~0u, from, r));
        ptx::cp_async_16(shared.q[at.slot] + tile::offset(warp_row + r, lane % chunks),
                         row + lane % chunks, (telling >> r & 1u) != 0 && inside ? 16 : 0);
      }
      ptx::cp_async_commit();
      auto& columns = shared.columns[at.slot];
      columns.lse[thread] = exists && tells(own_lse) ? own_lse : __builtin_huge_valf();
      columns.left[thread] = exists ? window.begin : 0;
      columns.right[thread] = exists && task.limit == mask::full ? window.end : 0x7fffffff;
      if (thread == 0) columns.low = window;
      if (pair == last) columns.high = window, columns.count = last - first + 1;
      if (++on_their_way <= Block::ahead) continue;
      ptx::cp_async_wait<Block::ahead>();
      publish();
    }
    // Before the next list waits for slots that these tiles' readers are to free.
    ptx::cp_async_wait<0>();
    while (on_their_way > 0) publish();
  });
}

/// The keys of one warpgroup in registers, and what is summed for the two rows of a thread: row
/// 16 * warp + lane / 4 and the eighth after it.
template <class T, int D>
struct probed_keys {
  using block = probe_block<D>;
  std::uint32_t k[D / 16][4];  ///< [64, D], left operands of 16 values each
  float products[32];          ///< [64, pairs] of the tile of pairs in work
  float mass[2] = {}, peak[2] = {};
  int sees[2] = {}, plain_pairs = 0;

  /// Takes the warpgroup's rows of a key tile.
  __device__ __forceinline__ void hold(unsigned char const* tile, int row) {
    using layout = typename block::key_tile;
    int const lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int s = 0; s < D / 16; ++s) {
      int const at = layout::offset(row + lane % 16, 2 * s + lane / 16);
      ptx::ldmatrix_x4(k[s], ptx::shared_address(tile) + static_cast<std::uint32_t>(at));
    }
  }

  /// Starts the products with a tile of pairs.
  __device__ __forceinline__ void start(std::uint64_t q) {
    using layout = typename block::pair_tile;
#pragma unroll
    for (int s = 0; s < D / 16; ++s) ptx::pin(k[s]);
    ptx::pin(products);
    ptx::fence_products();
#pragma unroll
    for (int s = 0; s < D / 16; ++s) {
      ptx::multiply_registers<T, true>(products, k[s], q + layout::value_step(s), s != 0);
    }
    ptx::commit_products();
  }
  __device__ __forceinline__ void wait() {
    ptx::wait_for_products<0>();
    ptx::pin(products);
  }

  /// Adds the products with a tile of pairs, which `bits` makes logits in log2 units of. `Plain`:
  /// every key is far for every pair; else `key` is that of row 0.
  template <bool Plain, class Columns>
  __device__ __forceinline__ void add(float const (&d)[32], Columns const& columns, int key,
                                      int sinks, float bits) {
    int const lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        int const pair = 8 * c + 2 * (lane % 4) + e;
        float const lse = columns.lse[pair];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float share = ptx::ex2(fmaf(d[4 * c + 2 * half + e], bits, -lse));
          if constexpr (!Plain) {
            int const j = key + 8 * half;
            // Without branches: few pairs come here, but each branch would cost more.
            bool const left = bool((j >= sinks) & (j < columns.left[pair]));
            bool const far = left | (j >= columns.right[pair]);
            share = far ? share : 0.f;
            sees[half] += far ? 1 : 0;
          }
          mass[half] += share;
          peak[half] = fmaxf(peak[half], share);
        }
      }
    }
    if constexpr (Plain) plain_pairs += columns.count;
  }

  /// Adds up what the four threads of each row hold.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        mass[half] += __shfl_xor_sync(~0u, mass[half], step);
        peak[half] = fmaxf(peak[half], __shfl_xor_sync(~0u, peak[half], step));
        sees[half] += __shfl_xor_sync(~0u, sees[half], step);
      }
    }
  }
};

/// A consumer warpgroup: sums its 64 keys of every tile over all pairs. While the products with a
/// tile of pairs become shares, those with the next are computed.
template <class T, int D, class Block, class Task>
__device__ __forceinline__ void sum_probed_keys(Block& shared, Task const& task,
                                                probe_share const& share, int group) {
  int const lane = static_cast<int>(threadIdx.x) % 32;
  int const warp = static_cast<int>(threadIdx.x) / 32 % 4;
  int const sinks = task.near.sinks;
  bool const full = task.limit == mask::full;
  std::uint64_t const q = Block::pair_tile::along_values(ptx::shared_address(shared.q));
  collective::ring_place<Block::key_stages> at;
  collective::ring_place<Block::pair_slots> first_place;
  share.each_segment<Block::keys>(task, [&](auto const& segment) {
    int const tiles = collective::uniform(segment.tiles);
    int const count = ceil_div(collective::uniform(segment.pairs), Block::pairs);
    bool const stays = count <= Block::pair_slots;
    for (int n = 0; n < tiles; ++n, at.advance()) {
      int const begin = (segment.first_tile + n) * Block::keys + group * 64;
      int const end = smaller(begin + 64, segment.extent.kv_tokens);
      int const key = begin + warp * 16 + lane / 4;
      probed_keys<T, D> keys;
      shared.k_ring.wait_full(at);
      keys.hold(shared.k[at.slot], group * 64 + warp * 16);
      __syncwarp();
      if (lane == 0) shared.k_ring.empty[at.slot].arrive();
      bool const loads = !stays || n == 0, releases = !stays || n == tiles - 1;
      auto const release = [&](int slot) {
        if (releases) shared.q_ring.empty[slot].arrive();
      };
      probe_view view_before = probe_view::none;
      int slot_before = 0;
      auto const add = [&](float const(&products)[32]) {
        auto const& columns = shared.columns[slot_before];
        if (view_before == probe_view::plain) {
          keys.template add<true>(products, columns, key, sinks, task.scale.bits);
        } else {
          keys.template add<false>(products, columns, key, sinks, task.scale.bits);
        }
      };
      auto place = first_place;
      for (int t = 0; t < count; ++t, place.advance()) {
        if (loads) shared.q_ring.wait_full(place);
        auto const& columns = shared.columns[place.slot];
        auto const view = static_cast<probe_view>(collective::uniform(
            static_cast<int>(view_of(begin, end, columns.low, columns.high, sinks, full))));
        if (view == probe_view::none) {
          release(place.slot);
          continue;
        }
        std::uint64_t const tile =
            q + static_cast<std::uint64_t>(place.slot * (Block::pair_tile::bytes >> 4));
        if (view_before == probe_view::none) {
          keys.start(tile);
          keys.wait();
        } else {
          float products[32];
#pragma unroll
          for (int e = 0; e < 32; ++e) products[e] = keys.products[e];
          ptx::pin(products);
          keys.start(tile);
          add(products);
          keys.wait();
          release(slot_before);
        }
        view_before = view;
        slot_before = place.slot;
      }
      if (view_before != probe_view::none) {
        add(keys.products);
        release(slot_before);
      }
      if (releases) first_place = place;
      keys.finish();
      int const half = lane % 4, j = key + 8 * half;  // lanes 0 and 1 of each four have a row each
      if (half > 1 || j >= task.scores.keys) continue;
      observation::probe_mass seen = {};
      if (j < end) {
        seen = {half == 0 ? keys.mass[0] : keys.mass[1], half == 0 ? keys.peak[0] : keys.peak[1],
                (half == 0 ? keys.sees[0] : keys.sees[1]) + keys.plain_pairs};
      }
      write_score(task.scores, task.scorer, segment.list, j, seen);
    }
  });
}

/// Second pass: masses and scores of every key of the lists of the range. One block a
/// multiprocessor, or fewer. A key's sum is in the order of the pairs, whoever adds it up.
template <class T, int D, class Scorer>
__global__ void __launch_bounds__(probe_block<D>::threads, 1)
    hopper_score_keys(CUtensorMap const __grid_constant__ k,
                      probe_task<T, Scorer> const __grid_constant__ task) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using block = probe_block<D>;
  extern __shared__ unsigned char probe_memory[];
  std::uint32_t const begin = ptx::shared_address(probe_memory);
  block& shared = *reinterpret_cast<block*>(probe_memory + (round_up(begin, 1024u) - begin));
  if (threadIdx.x == 0) {
    shared.k_ring.init(1, block::groups * 4);
    shared.q_ring.init(block::gather_threads, block::groups * 128);
    ptx::publish_barriers();
  }
  auto const share = probe_share::of(shared, task);
  __syncthreads();
  int const warp = collective::uniform(static_cast<int>(threadIdx.x) / 32);
  if (warp >= 4) {
    ptx::grow_registers<block::consumer_registers>();
    return sum_probed_keys<T, D>(shared, task, share, warp / 4 - 1);
  }
  ptx::shrink_registers<block::producer_registers>();
  if (warp >= 2) gather_pairs<D>(shared, task, share, static_cast<int>(threadIdx.x) - 64);
  if (warp == 1) score_unprobed<block>(task);
  if (threadIdx.x == 0) load_probed_keys(shared, k, task, share);
#endif
}

}  // namespace omnisparse::kernel
