/// @file
/// The key at which the largest keys together reach a wanted count or mass, digit by digit.
#pragma once

#include <omnisparse/backend/cuda/collective/histogram.cuh>
#include <omnisparse/backend/cuda/collective/team.cuh>

namespace omnisparse::collective {

/// Keys that are not searched among. The digits of ranks (`rank_of`) never look like theirs.
inline constexpr unsigned no_candidate = 0;
inline constexpr unsigned text_key = ~0u;  ///< above every rank: kept on top of the budget

/// What a search has found: the threshold, and what lies above it and at it. `before` counts the
/// CTAs of lower rank only, whose keys stand before ours.
template <class W>
struct threshold {
  unsigned key;
  std::uint64_t lack;  ///< weight still wanted of the keys that equal the threshold; > 0
  W above;             ///< keys above it, of all CTAs
  W above_before;
  W equal_before;
  W equal_here;  ///< keys that equal it, of this CTA
};

/// One step down, by one warp. Each lane holds `Slots` consecutive slots of the histograms, the
/// largest keys in lane 0; `read(rank, s)` is what slot s of the lane is in the CTA of that rank.
/// `lack_of(whole)` is the weight that is lacking. Returns the slot that reaches it, counted from
/// the largest, or -1 where nothing is lacking.
template <int Slots, class W, class Read, class Lack>
__device__ int step_down(team const& t, threshold<W>& found, Read const& read,
                         Lack const& lack_of) noexcept {
  W all[Slots] = {}, before[Slots] = {}, here[Slots] = {}, lane_all = {}, lane_before = {};
#pragma unroll
  for (int s = 0; s < Slots; ++s) {
    W parts[team::most];
#pragma unroll
    for (int rank = 0; rank < team::most; ++rank) {
      parts[rank] = rank < t.size ? read(rank, s) : W{};
    }
#pragma unroll
    for (int rank = 0; rank < team::most; ++rank) {
      all[s] += parts[rank];
      if (rank < t.rank) before[s] += parts[rank];
      if (rank == t.rank) here[s] = parts[rank];
    }
    lane_all += all[s];
    lane_before += before[s];
  }
  W const sum = warp_scan(lane_all), sum_before = warp_scan(lane_before);
  found.lack = lack_of(shuffle(sum, 31));
  if (found.lack == 0) return -1;
  unsigned const reached = __ballot_sync(whole_warp, weight_of(sum) >= found.lack);
  int const at = reached == 0 ? 31 : __ffs(static_cast<int>(reached)) - 1;
  // Every lane walks its slots as if it were the one; then the one is asked.
  W above = shuffle(sum, (lane_index() + 31) % 32);
  W above_before = shuffle(sum_before, (lane_index() + 31) % 32);
  if (lane_index() == 0) above = above_before = W{};
  int slot = 0;
#pragma unroll
  for (int s = 0; s + 1 < Slots; ++s) {
    if (slot != s || weight_of(above) + weight_of(all[s]) >= found.lack) continue;
    above += all[s];
    above_before += before[s];
    slot = s + 1;
  }
  W equal_before = before[0], equal_here = here[0];
#pragma unroll
  for (int s = 1; s < Slots; ++s) {
    if (slot == s) equal_before = before[s], equal_here = here[s];
  }
  above = shuffle(above, at);
  found.lack -= weight_of(above);
  found.above += above;
  found.above_before += shuffle(above_before, at);
  found.equal_before = shuffle(equal_before, at);
  found.equal_here = shuffle(equal_here, at);
  return at * Slots + shuffle(slot, at);
}

/// Searches among the keys that `each(n, visit)` shows in pass n of three: visit(key, mass), by
/// whole warps; a key's mass is asked for by a call. `wanted(whole, texts)`, asked of one thread of
/// each CTA, is the weight that keys at and above the threshold must reach, at most the whole; 0:
/// there is nothing to find, and false is returned. By all threads of all CTAs; `h` [2] and `found`
/// are shared by the CTA, and so is `texts`: the text keys of this CTA.
template <class W, class Each, class Wanted>
__device__ bool find_threshold(team const& t, histogram<W>* h, int split, threshold<W>& found,
                               unsigned& texts, Each const& each, Wanted const& wanted) noexcept {
  h[0].clear(split);
  h[1].clear(split);
  if (threadIdx.x == 0) found = {};
  __syncthreads();
  for (int n = 0; n < 3; ++n) {
    digit const d = digit::nth(n);
    histogram<W>& now = h[n % 2];
    unsigned const prefix = found.key;
    each(n, [&](unsigned key, auto const& mass) {
      bool const takes = d.follows(prefix, key);
      now.add(d.of(key), takes, histogram<W>::weighs && takes ? mass() : 0);
    });
    __syncthreads();
    if (n == 0) {  // what is not ranked is counted in the outermost bins
      if (threadIdx.x == 0) {
        now.drop(d.of(no_candidate));
        texts = now.drop(d.of(text_key));
      }
      __syncthreads();
    }
    now.sum_groups();
    t.sync();
    if (warp_index() == 0) {
      threshold<W> next = found;
      int const group = step_down<1>(
          t, next, [&](int rank, int) { return t.at(now, rank).sums[31 - lane_index()]; },
          [&](W const& whole) {
            if (n > 0) return next.lack;
            std::uint64_t weight = 0;
            if (lane_index() == 0) weight = wanted(whole);
            return shuffle(weight, 0);
          });
      if (group >= 0) {
        int const last = (32 - group) * histogram<W>::group_bins - 1;
        int const slot = step_down<2>(
            t, next,
            [&](int rank, int s) { return t.at(now, rank).bin(last - 2 * lane_index() - s); },
            [&](W const&) { return next.lack; });
        next.key |= static_cast<unsigned>(last - slot) << d.shift;
      }
      if (lane_index() == 0) found = next;
    } else if (n == 1) {
      h[0].clear(split, 32);  // nobody reads the first digit any more: the third one's turn
    }
    __syncthreads();
    if (found.lack == 0) return false;
  }
  return true;
}

}  // namespace omnisparse::collective
