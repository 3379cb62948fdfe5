/// @file
/// What a consumer warpgroup of the Hopper kernel does with a row tile: products, softmax,
/// products.
#pragma once

#include <omnisparse/backend/cuda/collective/attend_block.cuh>
#include <omnisparse/backend/cuda/collective/online_softmax.cuh>
#include <omnisparse/backend/cuda/ptx/narrow.cuh>
#include <omnisparse/backend/cuda/ptx/warpgroup.cuh>
#include <omnisparse/backend/cuda/ptx/wgmma.cuh>

namespace omnisparse::collective {

/// The same value in every lane, known as such: what feeds descriptors and loop bounds.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(~0u, x, 0); }

/// 64 rows of a tile, held by one warpgroup. While the scores of a key tile become exponentials,
/// the values of the one before are summed. A thread holds row 16 * warp + lane / 4 and the eighth
/// after it.
template <class T, int D, bool Gathered, bool Values>
struct attend_group {
  using block = attend_block<D, Gathered, Values>;
  using q_tile = typename block::q_tile;
  using kv_tile = typename block::kv_tile;
  using few_tile = typename block::few_tile;
  static constexpr bool attends = Values;  ///< else only lse is wanted
  static constexpr int groups = block::tune.groups;
  static constexpr int keys = tuning::hopper_keys;
  static constexpr int few = tuning::hopper_few_keys;

  block& shared;
  int const group;
  std::uint64_t const q_base, k_base, v_base;
  std::uint64_t q;                  // of the current tile
  float scores[keys / 2];           // [64, keys], then their exponentials
  std::uint32_t weights[keys / 4];  // the exponentials as pairs of T
  float sums[D / 2];                // [64, D]
  online_softmax<T> softmax;
  softmax_terms const& terms;
  ring_place<block::stages> at;

  __device__ __forceinline__ attend_group(block& memory, int group_index,
                                          softmax_terms const& softmax_terms_of_task)
      : shared(memory),
        group(group_index),
        q_base(q_tile::along_values(ptx::shared_address(memory.q) +
                                    static_cast<std::uint32_t>(group_index) * 8192u)),
        k_base(kv_tile::along_values(ptx::shared_address(memory.k))),
        v_base(kv_tile::along_rows(ptx::shared_address(memory.v))),
        terms(softmax_terms_of_task) {
    // Group 0 has the first turn.
    if (block::tune.takes_turns && Values && group == groups - 1) ptx::arrive_at(1, 256);
  }

  __device__ static __forceinline__ int thread() { return static_cast<int>(threadIdx.x) % 128; }
  __device__ static __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  /// The row of this thread's `half`, in the tile.
  __device__ __forceinline__ int row(int half) const {
    return group * 64 + thread() / 32 * 16 + lane() / 4 + 8 * half;
  }

  /// Attends to all keys of an item; `seen(half, part)` is what a row sees of a part of the walk.
  /// Leaves sums, and the finished state of the softmax.
  template <class Seen>
  __device__ __forceinline__ void attend(attend_item const& item, int q_slot, Seen const& seen) {
    q = q_base + static_cast<std::uint64_t>(q_slot) * (q_tile::bytes >> 4);
    softmax.clear();
    if constexpr (Values) {
#pragma unroll
      for (int e = 0; e < D / 2; ++e) sums[e] = 0.f;
    }
    int const tiles = uniform(item.walk.tiles());
    if (tiles == 0) return;
    int part = 0;
    key_range ranges[2] = {seen(0, 0), seen(1, 0)};
    auto const mask = [&](float(&s)[keys / 2], loaded_keys keys_of_tile) {
      if (keys_of_tile.part != part) {
        part = keys_of_tile.part;
        ranges[0] = seen(0, part);
        ranges[1] = seen(1, part);
      }
      mask_scores(s, ranges, keys_of_tile.first, lane());
    };
    auto const no_mask = [](float(&)[keys / 2], loaded_keys) {};
    shared.k_ring.wait_full(at);
    loaded_keys loaded = read_loaded();
#pragma unroll
    for (float& s : scores) s = 0.f;  // else their registers stay taken between items
    start_scores(at.slot);
    ptx::wait_for_products<0>();
    ptx::pin(scores);
    release(shared.k_ring.empty[at.slot]);
    bool done = !Values;  // is the first tile behind us?
    if constexpr (Values) {
      mask(scores, loaded);
      softmax.template update<true, true>(scores, terms);
      narrow(scores);
    } else {
      at.advance();
    }
    int follow = tiles - 1;
#pragma unroll 1
    for (int n = 0; n < 4; ++n) {  // of each part the right end and the middle, then the left end
      key_stretch const& stretch = item.walk.part[n / 2];
      int masked = uniform(n % 2 == 0 ? stretch.right : stretch.left);
      int plain = n % 2 == 0 ? uniform(stretch.plain()) : 0;
      if (!done && masked + plain > 0) {
        --(masked > 0 ? masked : plain);
        done = true;
      }
      if constexpr (Values) {
        for (; masked > 0; --masked) step<true>(mask);
        for (; plain > 0; --plain) step<false>(no_mask);
      } else {
        for (; masked > 0 && follow > 0; --masked, --follow) step_keys<true>(loaded, mask);
        for (; plain > 0 && follow > 0; --plain, --follow) step_keys<false>(loaded, no_mask);
      }
    }
    if constexpr (!Values) {
      mask(scores, loaded);
      softmax.template update<false, true>(scores, terms);
    }
    if (!Gathered && uniform(item.few_keys) != 0) {
      last_few([&](float(&s)[few / 2]) {
        key_range const sinks[2] = {seen(0, 1), seen(1, 1)};
        mask_scores(s, sinks, 0, lane());
      });
    } else if constexpr (Values) {
      shared.v_ring.wait_full(at);
      start_values(at.slot);
      ptx::wait_for_products<0>();
      ptx::pin(sums);
      release(shared.v_ring.empty[at.slot]);
      at.advance();
    }
    softmax.finish();
  }

 private:
  // One lane of each warp: a wait for products speaks for the warp that waits.
  __device__ __forceinline__ void release(ptx::mbarrier& empty) {
    if (lane() == 0) empty.arrive();
  }
  // The lane that releases the stage reads for all.
  __device__ __forceinline__ loaded_keys read_loaded() const {
    loaded_keys loaded = {};
    if (lane() == 0) loaded = shared.loaded[at.slot];
    return {uniform(loaded.first), uniform(loaded.part)};
  }
  __device__ __forceinline__ void take_turn() {
    if constexpr (block::tune.takes_turns && Values) ptx::wait_at(1 + group, 256);
  }
  __device__ __forceinline__ void pass_turn() {
    if constexpr (block::tune.takes_turns && Values) ptx::arrive_at(1 + (group + 1) % groups, 256);
  }

  // scores = q K of a stage, as a batch of products.
  __device__ __forceinline__ void start_scores(int stage) {
    std::uint64_t const k = k_base + static_cast<std::uint64_t>(stage * (kv_tile::bytes >> 4));
    ptx::pin(scores);
    ptx::fence_products();
#pragma unroll
    for (int s = 0; s < D / 16; ++s) {
      ptx::multiply_shared<T>(scores, q + q_tile::value_step(s), k + kv_tile::value_step(s),
                              s != 0);
    }
    ptx::commit_products();
  }

  // sums += weights V of a stage, as a batch of products.
  __device__ __forceinline__ void start_values(int stage) {
    std::uint64_t const v = v_base + static_cast<std::uint64_t>(stage * (kv_tile::bytes >> 4));
    ptx::pin(sums);
    ptx::pin(weights);
    ptx::fence_products();
#pragma unroll
    for (int s = 0; s < keys / 16; ++s) {
      ptx::multiply_registers<T>(sums, weights + 4 * s, v + kv_tile::row_step(s), 1);
    }
    ptx::commit_products();
  }

  template <int N>
  __device__ __forceinline__ void narrow(float const (&s)[N]) {
#pragma unroll
    for (int e = 0; e < N / 2; ++e) weights[e] = ptx::pair_of<T>(s[2 * e], s[2 * e + 1]);
  }

  // The scores of the next key tile, beside the values of the last.
  template <bool Masked, class Mask>
  __device__ __forceinline__ void step(Mask const& apply_mask) {
    ring_place<block::stages> const last = at;
    at.advance();
    shared.k_ring.wait_full(at);
    loaded_keys const loaded = Masked ? read_loaded() : loaded_keys{};
    take_turn();
    start_scores(at.slot);
    shared.v_ring.wait_full(last);
    start_values(last.slot);
    pass_turn();
    ptx::wait_for_products<1>();
    ptx::pin(scores);
    release(shared.k_ring.empty[at.slot]);
    apply_mask(scores, loaded);
    softmax.template update<false, Masked>(scores, terms);
    ptx::wait_for_products<0>();
    ptx::pin(sums);
    ptx::pin(weights);
    release(shared.v_ring.empty[last.slot]);
    narrow(scores);
    softmax.rescale_sums(sums);
  }

  // Without values: the scores of the next key tile, beside the sums of the last, whose keys were
  // `loaded`.
  template <bool Masked, class Mask>
  __device__ __forceinline__ void step_keys(loaded_keys& loaded, Mask const& apply_mask) {
    float last[keys / 2];
#pragma unroll
    for (int e = 0; e < keys / 2; ++e) last[e] = scores[e];
    ptx::pin(last);
    shared.k_ring.wait_full(at);
    loaded_keys const next = read_loaded();
    start_scores(at.slot);
    apply_mask(last, loaded);
    softmax.template update<false, Masked>(last, terms);
    ptx::wait_for_products<0>();
    ptx::pin(scores);
    release(shared.k_ring.empty[at.slot]);
    at.advance();
    loaded = next;
  }

  // The narrow tile of the sinks, beside the values of the last tile; then its own values.
  template <class Mask>
  __device__ __forceinline__ void last_few(Mask const& apply_mask) {
    float s[few / 2] = {};
    ring_place<block::stages> const last = at;
    if constexpr (Values) at.advance();
    shared.k_ring.wait_full(at);
    std::uint64_t const stage = static_cast<std::uint64_t>(at.slot * (kv_tile::bytes >> 4));
    ptx::pin(s);
    ptx::fence_products();
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      ptx::multiply_shared<T>(s, q + q_tile::value_step(i),
                              k_base + stage + few_tile::value_step(i), i != 0);
    }
    ptx::commit_products();
    if constexpr (Values) {
      shared.v_ring.wait_full(last);
      start_values(last.slot);
      ptx::wait_for_products<1>();
    } else {
      ptx::wait_for_products<0>();
    }
    ptx::pin(s);
    release(shared.k_ring.empty[at.slot]);
    apply_mask(s);
    softmax.template update<false, true>(s, terms);
    if constexpr (Values) {
      ptx::wait_for_products<0>();
      ptx::pin(sums);
      ptx::pin(weights);
      release(shared.v_ring.empty[last.slot]);
      narrow(s);
      softmax.rescale_sums(sums);
      shared.v_ring.wait_full(at);
      ptx::pin(sums);
      ptx::pin(weights);
      ptx::fence_products();
      std::uint64_t const v = few_tile::along_rows(ptx::shared_address(shared.v)) + stage;
      ptx::multiply_registers<T>(sums, weights, v, 1);
      ptx::commit_products();
      ptx::wait_for_products<0>();
      ptx::pin(sums);
      release(shared.v_ring.empty[at.slot]);
    }
    at.advance();
  }
};

}  // namespace omnisparse::collective
