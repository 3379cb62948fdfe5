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

/// Bytes of dynamic shared memory of `select_lists`: room for the ranks of a CTA's share of the
/// keys, or none where that is too long.
OMNISPARSE_HD constexpr int ranks_bytes(int kv_tokens, int ctas) noexcept {
  int const share = ceil_div(kv_tokens, ctas * (select_threads * 4)) * (select_threads * 4);
  return share <= 16384 ? share * static_cast<int>(sizeof(unsigned)) : 0;
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
template <collective::masses Also>
__device__ std::uint64_t write_kept(collective::list_keys const& keys, cut const& at, uint2* warps,
                                    int* kept, int capacity) noexcept {
  using namespace collective;
  unsigned above = 0, equal = 0;
  keys.each_block<ranks::kept, masses::no>([&](int, unsigned const(&key)[4], float const(&)[4]) {
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
  unsigned const lower_lanes = (1u << lane_index()) - 1u;
  std::uint64_t dropped = 0;
  keys.each_block<ranks::kept, Also>(
      [&](int block, unsigned const(&key)[4], float const(&mass)[4]) {
        for (int n = 0; n < 4; ++n) {
          unsigned const aboves = __ballot_sync(whole_warp, key[n] > at.key);
          unsigned const equals = __ballot_sync(whole_warp, key[n] == at.key);
          unsigned const e = equal + static_cast<unsigned>(__popc(equals & lower_lanes));
          if (key[n] > at.key || (key[n] == at.key && e < at.ties)) {
            unsigned const a = above + static_cast<unsigned>(__popc(aboves & lower_lanes));
            unsigned const place = a + smaller(e, at.ties);
            if (place < static_cast<unsigned>(capacity))
              kept[place] = block + n * 32 + lane_index();
          } else if (Also == masses::yes && is_ranked(key[n])) {
            dropped += keys.fixed(mass[n]);
          }
          above += static_cast<unsigned>(__popc(aboves));
          equal += static_cast<unsigned>(__popc(equals));
        }
      });
  return dropped;
}

/// Writes kept, kept_counts and recalls of every list of the range. `Probed`: masses mean
/// something. Grid: a team of CTAs for each list.
template <class Budget, bool Probed>
__global__ void __launch_bounds__(select_threads, 2)
    select_lists(__grid_constant__ collective::list_frame const f, Budget budget,
                 reach_view reached, plan_view<device> plan) {
  using namespace collective;
  extern __shared__ unsigned known[];
  __shared__ search_memory<unsigned> search;
  __shared__ uint2 warps[select_threads / 32];
  __shared__ unsigned texts_before, all_texts, count;
  __shared__ unsigned long long dropped_here, dropped[team::most];
  team const t = team::current();
  int const list = static_cast<int>(blockIdx.x) / t.size;
  list_keys const keys(f, list, t, ranks_bytes(f.shape.kv_tokens, t.size) > 0 ? known : nullptr);
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
  auto const first = [&](auto const& visit) {
    keys.each_block<ranks::scores, masses::no>(
        [&](int, unsigned const(&key)[4], float const(&)[4]) {
          visit(key, [](int) { return 0u; });
        });
  };
  auto const again = [&](auto const& visit) {
    keys.each_block<ranks::kept, masses::no>([&](int, unsigned const(&key)[4], float const(&)[4]) {
      visit(key, [](int) { return 0u; });
    });
  };
  bool const some = find_threshold(t, search, 0, first, again, [&](unsigned candidates) {
    unsigned before = 0, all = 0;
    for (int rank = 0; keys.has_texts() && rank < t.size; ++rank) {
      unsigned const theirs = t.at(search.texts, rank);
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
  auto const& found = search.found;
  cut const at = {some ? found.key : text_key - 1u, static_cast<unsigned>(found.lack),
                  found.above_before + texts_before, found.equal_before};
  std::uint64_t const mine = write_kept<Probed ? masses::yes : masses::no>(
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
