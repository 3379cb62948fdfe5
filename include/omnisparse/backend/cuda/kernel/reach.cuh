/// @file
/// How many tokens each list needs to hold a share of its probe rows' mass.
#pragma once

#include <omnisparse/backend/cuda/collective/concentration.cuh>

namespace omnisparse::kernel {

/// Dynamic shared memory of `measure_reach`.
inline constexpr int reach_bytes = sizeof(collective::search_memory<collective::tally>);

/// The mass that must come from keys, beside what near field and text hold, to reach `recall` of
/// the whole; `candidates`: what all keys of the list could give. 0 where nothing is lacking.
__device__ inline std::uint64_t lacking_mass(float recall, std::uint64_t whole,
                                             std::uint64_t candidates) noexcept {
  double const exact = ceil(static_cast<double>(recall) * static_cast<double>(whole));
  std::uint64_t const wanted = smaller(static_cast<std::uint64_t>(exact), whole);
  return wanted + candidates > whole ? wanted + candidates - whole : 0;
}

/// Of the keys that equal the threshold, taken in order: the count at which they reach what is
/// lacking. Written by the one thread that knows it.
__device__ inline void count_ties(collective::team const& t, collective::list_keys const& keys,
                                  collective::threshold<collective::tally> const& found,
                                  collective::tally* warps, int* reach) noexcept {
  using namespace collective;
  if (found.equal.count == 1) {
    if (t.rank == 0 && threadIdx.x == 0) *reach = static_cast<int>(found.above + 1);
    return;
  }
  auto const tie = [&](unsigned key, float mass) {
    return key == found.key ? tally{1, keys.fixed(mass)} : tally{};
  };
  tally passed = found.equal_before;
  for (int tile = keys.begin; tile < keys.end && passed.mass < found.lack; tile += keys.tile()) {
    tally own = {};
    keys.each_block_of<ranks::scores, masses::yes>(
        tile, [&](int, unsigned const(&key)[4], float const(&mass)[4]) {
          for (int n = 0; n < 4; ++n) own += tie(key[n], mass[n]);
        });
    own = warp_sum(own);
    __syncthreads();
    if (lane_index() == 0) warps[warp_index()] = own;
    __syncthreads();
    tally const theirs = lane_index() < team::warps ? warps[lane_index()] : tally{};
    tally before = passed;
    before += warp_sum(lane_index() < warp_index() ? theirs : tally{});
    passed += warp_sum(theirs);
    if (before.mass >= found.lack || before.mass + own.mass < found.lack) continue;
    keys.each_block_of<ranks::scores, masses::yes>(
        tile, [&](int, unsigned const(&key)[4], float const(&mass)[4]) {
          for (int n = 0; n < 4; ++n) {
            if (!__any_sync(whole_warp, key[n] == found.key)) continue;
            tally const here = tie(key[n], mass[n]), sum = warp_scan(here);
            std::uint64_t const reached = before.mass + sum.mass;
            if (reached - here.mass < found.lack && found.lack <= reached) {
              *reach = static_cast<int>(found.above + before.count + sum.count);
            }
            before += shuffle(sum, 31);
          }
        });
  }
}

/// Writes reach [lists] and, where heads are compared, concentration [lists]. Grid: a team of CTAs
/// for each list of the range.
template <bool Compares>
__global__ void __launch_bounds__(collective::team::threads, 2)
    measure_reach(__grid_constant__ collective::list_frame const f, float recall, flatness_by by,
                  int* reach, double* concentration) {
  using namespace collective;
  extern __shared__ unsigned long long dynamic[];
  __shared__ tally warps[team::warps];
  __shared__ std::uint64_t sums[2];
  __shared__ unsigned most;
  team const t = team::current();
  int const list = t.divides(static_cast<int>(blockIdx.x));
  list_keys const keys(f, list, t, nullptr);
  bool const speaks = t.rank == 0 && threadIdx.x == 0;
  if (keys.rows == 0) {
    if (speaks) reach[list] = 0;
    if (Compares && speaks) concentration[list] = INFINITY;
    return;
  }
  if constexpr (Compares) {
    auto* const by_mass = reinterpret_cast<search_memory<unsigned>*>(dynamic);
    if (threadIdx.x == 0) sums[0] = sums[1] = most = 0;
    __syncthreads();
    double const measured = collective::concentration(t, keys, by, {by_mass, sums, &most});
    if (speaks) concentration[list] = measured;
    t.sync();
  }
  auto& search = *reinterpret_cast<search_memory<tally>*>(dynamic);
  auto const each = [&](auto const& visit) {
    keys.each_block<ranks::scores, masses::yes>(
        [&](int, unsigned const(&key)[4], float const(&mass)[4]) {
          visit(key, [&](int n) { return keys.fixed(mass[n]); });
        });
  };
  bool const lacking = find_threshold(
      t, search, keys.split, each, each,
      [&](std::uint64_t candidates) { return lacking_mass(recall, keys.whole(), candidates); });
  t.sync();  // a CTA stays as long as others read its shared memory
  if (lacking) {
    count_ties(t, keys, search.found, warps, reach + list);
  } else if (speaks) {
    reach[list] = 0;
  }
}

}  // namespace omnisparse::kernel
