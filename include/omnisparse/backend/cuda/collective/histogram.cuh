/// @file
/// Histograms of one radix digit in shared memory: how many keys, and how much mass, per value.
#pragma once

#include <omnisparse/backend/cuda/collective/tally.cuh>

#include <type_traits>

namespace omnisparse::collective {

/// One of the digits of a 32-bit key.
struct digit {
  int shift;
  int bits;

  __device__ constexpr int of(unsigned key) const noexcept {
    return static_cast<int>(key >> shift & ((1u << bits) - 1u));
  }
  /// Do the digits above this one agree?
  __device__ constexpr bool follows(unsigned prefix, unsigned key) const noexcept {
    return shift + bits == 32 || (prefix ^ key) >> (shift + bits) == 0;
  }
  /// The n-th of the three digits, the most significant first.
  static __device__ constexpr digit nth(int n) noexcept {
    return n == 0 ? digit{21, 11} : n == 1 ? digit{10, 11} : digit{0, 10};
  }
};

/// W is unsigned (counts) or tally (counts and mass). The sums of groups of bins stand beside them.
template <class W>
struct histogram {
  static constexpr bool weighs = std::is_same_v<W, tally>;
  static constexpr int bins = 2048;
  static constexpr int groups = 32;
  static constexpr int group_bins = bins / groups;

  // Shared memory adds 32 bits at a time: a mass is cut at bit `split`, so that neither the lower
  // parts of all keys of a list nor the upper parts of a whole mass overflow.
  unsigned counts[bins];
  unsigned low[weighs ? bins : 1];
  unsigned high[weighs ? bins : 1];
  W sums[groups];
  int split;

  /// By threads [first, blockDim.x) of the CTA.
  __device__ void clear(int cut_at, int first = 0) noexcept {
    int const threads = static_cast<int>(blockDim.x) - first;
    for (int n = static_cast<int>(threadIdx.x) - first; n >= 0 && n < bins; n += threads) {
      counts[n] = 0;
      if constexpr (weighs) low[n] = high[n] = 0;
      if (n == 0) split = cut_at;
    }
  }
  /// By one thread: empties a bin and returns how many keys it had.
  __device__ unsigned drop(int n) noexcept {
    unsigned const count = counts[n];
    counts[n] = 0;
    if constexpr (weighs) low[n] = high[n] = 0;
    return count;
  }

  __device__ W bin(int n) const noexcept {
    if constexpr (weighs) {
      return {counts[n], (std::uint64_t{high[n]} << split) + low[n]};
    } else {
      return counts[n];
    }
  }

  /// By a whole warp: each lane that `takes` part adds a key of this mass to bin n.
  __device__ void add(int n, bool takes, std::uint64_t mass) noexcept {
    if constexpr (weighs) {
      unsigned const takers = __ballot_sync(whole_warp, takes);
      if (takers == 0) return;
      int const first = __ffs(static_cast<int>(takers)) - 1;
      int const theirs = shuffle(n, first);  // outside the condition: every lane takes part
      if (__all_sync(whole_warp, !takes || n == theirs)) {
        // Many equal keys, as zeros are: one lane speaks for all, or they would queue.
        std::uint64_t const sum = warp_sum(takes ? mass : 0);
        if (lane_index() == first) {
          atomicAdd(counts + n, static_cast<unsigned>(__popc(takers)));
          put(n, sum);
        }
        return;
      }
    }
    if (!takes) return;
    atomicAdd(counts + n, 1u);
    if constexpr (weighs) put(n, mass);
  }

  /// By the whole CTA, after a barrier.
  __device__ void sum_groups() noexcept {
    int const warps = static_cast<int>(blockDim.x) / 32;
    for (int g = warp_index(); g < groups; g += warps) {
      W sum = bin(g * group_bins + lane_index());
      sum += bin(g * group_bins + 32 + lane_index());
      sum = warp_sum(sum);
      if (lane_index() == 0) sums[g] = sum;
    }
  }

 private:
  __device__ void put(int n, std::uint64_t mass) noexcept {
    auto const upper = static_cast<unsigned>(mass >> split);
    auto const lower = static_cast<unsigned>(mass) & ((1u << split) - 1u);
    if (lower != 0) atomicAdd(low + n, lower);
    if (upper != 0) atomicAdd(high + n, upper);
  }
};

}  // namespace omnisparse::collective
