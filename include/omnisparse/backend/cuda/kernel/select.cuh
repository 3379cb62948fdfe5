/// @file
/// The kept lists: the best keys of each list, as many as the budget says, and all text keys.
#pragma once

#include <omnisparse/backend/cuda/kernel/reach.cuh>
#include <omnisparse/core/policy.hpp>
#include <omnisparse/plan/plan.hpp>

#include <concepts>

namespace omnisparse::kernel {

/// What the lists of a launch reach; null where the budget looks at nothing.
struct reach_view {
  int* reach = nullptr;             ///< [lists]
  double* concentration = nullptr;  ///< [lists]; null where heads are not compared
};

/// The budget's answer for one list, as it stands. By one thread.
template <class Budget>
__device__ int ask_budget(Budget const& budget, reach_view const& reached, int list, int g,
                          int heads, kv_extent kv) noexcept {
  using sees = observed<Budget>;
  if constexpr (std::same_as<sees, observation::own_reach>) {
    return budget.tokens({reached.reach[list]}, kv);
  } else if constexpr (std::same_as<sees, observation::all_reaches>) {
    double const* const of_heads = reached.concentration + (list - g);
    int flattest = 0;
    double least = of_heads[0];
    for (int h = 1; h < heads; ++h) {
      if (of_heads[h] < least) {
        least = of_heads[h];
        flattest = h;
      }
    }
    return budget.tokens({reached.reach + (list - g), heads, flattest}, kv);
  } else {
    return budget.tokens({}, kv);
  }
}

/// Where kept keys go: those above the threshold, and the first `ties` of those that equal it.
struct cut {
  unsigned key;
  unsigned ties;
  unsigned above_before;  ///< in CTAs of lower rank
  unsigned equal_before;
};

/// Writes this CTA's kept keys, in order, to kept [capacity]. Returns the mass of the ranked keys
/// that this thread saw dropped; 0 where masses are not read.
template <collective::reads What>
__device__ std::uint64_t write_kept(collective::list_keys const& keys, cut const& at, uint2* warps,
                                    int* kept, int capacity) noexcept {
  using namespace collective;
  unsigned above = 0, equal = 0;
  keys.each_four<reads::score>([&](int, unsigned const(&key)[4], float const(&)[4]) {
    for (int n = 0; n < 4; ++n) {
      above += key[n] > at.key ? 1u : 0u;
      equal += key[n] == at.key ? 1u : 0u;
    }
  });
  above = warp_sum(above);
  equal = warp_sum(equal);
  if (lane_index() == 0) warps[warp_index()] = {above, equal};
  __syncthreads();
  uint2 const before = lane_index() < warp_index() ? warps[lane_index()] : uint2{0, 0};
  above = at.above_before + warp_sum(before.x);
  equal = at.equal_before + warp_sum(before.y);
  std::uint64_t dropped = 0;
  keys.each_four<What>([&](int j, unsigned const(&key)[4], float const(&mass)[4]) {
    unsigned here = 0;  // above in the lower half, equal in the upper: at most 128 of each
    for (int n = 0; n < 4; ++n) here += key[n] > at.key ? 1u : key[n] == at.key ? 0x10000u : 0u;
    unsigned const sum = warp_scan(here);
    unsigned a = above + (sum - here & 0xffffu), e = equal + (sum - here >> 16);
    for (int n = 0; n < 4; ++n) {
      bool const is_above = key[n] > at.key, is_equal = key[n] == at.key;
      if (is_above || (is_equal && e < at.ties)) {
        unsigned const place = a + smaller(e, at.ties);
        if (place < static_cast<unsigned>(capacity)) kept[place] = j + n;
      } else if (is_ranked(key[n])) {
        dropped += keys.fixed(mass[n]);
      }
      a += is_above ? 1u : 0u;
      e += is_equal ? 1u : 0u;
    }
    unsigned const all = shuffle(sum, 31);
    above += all & 0xffffu;
    equal += all >> 16;
  });
  return dropped;
}

/// Writes kept, kept_counts and recalls of every list of the range. `Probed`: masses mean
/// something. Grid: a team of CTAs for each list.
template <class Budget, bool Probed>
__global__ void __launch_bounds__(select_threads, 2)
    select_lists(collective::list_frame f, Budget budget, reach_view reached,
                 plan_view<device> plan) {
  using namespace collective;
  __shared__ histogram<unsigned> h[2];
  __shared__ threshold<unsigned> found;
  __shared__ uint2 warps[select_threads / 32];
  __shared__ unsigned texts, texts_before, all_texts, count;
  __shared__ unsigned long long dropped_here, dropped[team::most];
  team const t = team::current();
  int const list = static_cast<int>(blockIdx.x) / t.size;
  list_keys const keys = list_keys::of(f, list, t);
  std::int64_t const to = plan.list(keys.b, keys.c, keys.g);
  bool const speaks = t.rank == 0 && threadIdx.x == 0;
  if (keys.rows == 0) {
    if (speaks) {
      plan.kept_counts[to] = 0;
      plan.recalls[to] = Probed ? 1.f : -1.f;
    }
    return;
  }
  if (threadIdx.x == 0) dropped_here = 0;
  auto const each = [&](int, auto const& visit) {
    keys.each_four<reads::score>([&](int, unsigned const(&key)[4], float const(&)[4]) {
      for (int n = 0; n < 4; ++n) visit(key[n], [] { return 0u; });
    });
  };
  bool const some = find_threshold(t, h, 0, found, texts, each, [&](unsigned candidates) {
    unsigned before = 0, all = 0;
    for (int rank = 0; keys.kinds != nullptr && rank < t.size; ++rank) {
      unsigned const theirs = t.at(texts, rank);
      before += rank < t.rank ? theirs : 0;
      all += theirs;
    }
    texts_before = before;
    all_texts = all;
    int const tokens = static_cast<int>(candidates);
    int const wanted = ask_budget(budget, reached, list, keys.g, f.shape.kv_heads, {tokens});
    int const room = larger(0, plan.capacity - static_cast<int>(all));
    count = static_cast<unsigned>(smaller(clamped(wanted, 0, tokens), room));
    return std::uint64_t{count};
  });
  cut const at = {some ? found.key : text_key - 1u, static_cast<unsigned>(found.lack),
                  found.above_before + texts_before, found.equal_before};
  std::uint64_t const mine = write_kept<Probed ? reads::both : reads::score>(
      keys, at, warps, plan.kept + to * plan.capacity, plan.capacity);
  if constexpr (Probed) {
    std::uint64_t const sum = warp_sum(mine);
    if (lane_index() == 0) atomicAdd(&dropped_here, sum);
    __syncthreads();
    if (threadIdx.x == 0) t.at(dropped[t.rank], 0) = dropped_here;
  }
  t.sync();  // a CTA stays as long as others read its shared memory
  if (!speaks) return;
  plan.kept_counts[to] = smaller(static_cast<int>(count + all_texts), plan.capacity);
  float recall = -1.f;
  if constexpr (Probed) {
    auto held = static_cast<std::int64_t>(keys.whole());
    for (int rank = 0; rank < t.size; ++rank) held -= static_cast<std::int64_t>(dropped[rank]);
    recall = keys.pairs > 0
                 ? static_cast<float>(static_cast<double>(held) / static_cast<double>(keys.whole()))
                 : 1.f;
  }
  plan.recalls[to] = recall;
}

}  // namespace omnisparse::kernel
