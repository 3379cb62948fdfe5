/// @file
/// Histograms of one radix digit in shared memory: how many keys, and how much mass, per value.
#pragma once

#include <omnisparse/backend/cuda/collective/tally.cuh>
#include <omnisparse/backend/cuda/collective/team.cuh>

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

/// W is unsigned (counts) or tally (counts and mass).
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
  int split;

  /// By the whole CTA.
  __device__ void clear(int cut_at) noexcept {
    for (int n = static_cast<int>(threadIdx.x); n < bins; n += team::threads) {
      counts[n] = 0;
      if constexpr (weighs) low[n] = high[n] = 0;
    }
    if (threadIdx.x == 0) split = cut_at;
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

  /// By a whole warp: adds those of each lane's four keys that `take` part; mass(n) is one's mass.
  template <class Mass>
  __device__ void add(int const (&bin)[4], bool const (&takes)[4], Mass const& mass) noexcept {
    bool const some = takes[0] || takes[1] || takes[2] || takes[3];
    if constexpr (weighs) {
      if (!__any_sync(whole_warp, some)) return;
      int const theirs = shuffle(bin[0], 0);
      bool alike = true;
      for (int n = 0; n < 4; ++n) alike = alike && takes[n] && bin[n] == theirs;
      if (__all_sync(whole_warp, alike)) {
        // Many equal keys, as zeros are: one lane speaks for all, or they would queue.
        std::uint64_t const sum = warp_sum(mass(0) + mass(1) + mass(2) + mass(3));
        if (lane_index() == 0) {
          atomicAdd(counts + theirs, 128u);
          put(theirs, sum);
        }
        return;
      }
    }
    if (!some) return;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (!takes[n]) continue;
      atomicAdd(counts + bin[n], 1u);  // by a constant: the hardware gathers equal bins
      if constexpr (weighs) put(bin[n], mass(n));
    }
  }

  /// The sum of a group, the largest keys in group 0; by a whole warp.
  __device__ W group(int g) const noexcept {
    int const first = bins - (g + 1) * group_bins + lane_index();
    W sum = bin(first);
    sum += bin(first + 32);
    return warp_sum(sum);
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
