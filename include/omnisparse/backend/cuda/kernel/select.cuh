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

/// Bytes of dynamic shared memory of `select_lists`: 4 for each key of a tile.
OMNISPARSE_HD constexpr int tile_bytes(int kv_tokens, int ctas) noexcept {
  int const of_warp = ceil_div(kv_tokens, ctas * collective::team::warps * 128);
  return smaller(of_warp, 8) * collective::team::warps * 128 * static_cast<int>(sizeof(int));
}

/// The keys of a warp that hold a predicate, 32 neighbours a lane.
struct marked_keys {
  unsigned bits;    ///< bit n: key first + n
  int first;        ///< of this lane
  unsigned before;  ///< marked keys of this CTA that stand before `first`
  unsigned lanes;   ///< of these, in lower lanes
  unsigned all;     ///< marked keys of the warp

  /// The n-th marked key of this lane, n in [0, popc(bits)).
  __device__ int key(unsigned n) const noexcept {
    unsigned rest = bits;
    for (; n > 0; --n) rest &= rest - 1;
    return first + __ffs(static_cast<int>(rest)) - 1;
  }
};

/// Shows the keys of this CTA that hold `holds(j, key, mass)`, in order, a tile at a time:
/// visit(marked_keys). By all threads.
template <collective::masses Also, class Holds, class Visit>
__device__ void each_marked(collective::list_keys const& keys, unsigned* warps, Holds const& holds,
                            Visit const& visit) noexcept {
  using namespace collective;
  unsigned passed = 0;
  for (int tile = keys.begin; tile < keys.end; tile += keys.tile()) {
    int const first = tile + keys.each * warp_index();
    unsigned bits = 0;
    keys.each_block_of<ranks::kept, Also>(
        tile, [&](int block, unsigned const(&key)[4], float const(&mass)[4]) {
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            bool const held = holds(block + n * 32 + lane_index(), key[n], mass[n]);
            unsigned const word = __ballot_sync(whole_warp, held);
            if (lane_index() == (block - first) / 32 + n) bits = word;
          }
        });
    auto const own = static_cast<unsigned>(__popc(bits)), sum = warp_scan(own);
    unsigned const all = shuffle(sum, 31);
    __syncthreads();  // nobody reads the sums of the tile before
    if (lane_index() == 0) warps[warp_index()] = all;
    __syncthreads();
    unsigned const theirs = lane_index() < team::warps ? warps[lane_index()] : 0;
    unsigned const lower = passed + warp_sum(lane_index() < warp_index() ? theirs : 0);
    visit(marked_keys{bits, first + lane_index() * 32, lower + sum - own, sum - own, all});
    passed += warp_sum(theirs);
  }
}

/// Where kept keys go: those above the threshold, and the first `ties` of those that equal it.
struct cut {
  unsigned key;
  unsigned ties;
  unsigned above_before;  ///< in CTAs of lower rank
  unsigned equal_before;
};

/// The key from which on this CTA drops what equals the threshold; `end` [1] is shared memory.
__device__ inline int end_of_ties(collective::list_keys const& keys, cut const& at, unsigned all,
                                  unsigned* warps, int* end) noexcept {
  using namespace collective;
  if (at.ties >= all) return keys.end;
  if (at.ties <= at.equal_before) return keys.begin;
  if (threadIdx.x == 0) *end = keys.end;
  unsigned const last = at.ties - at.equal_before - 1;  // of those that stay, in this CTA
  each_marked<masses::no>(
      keys, warps, [&](int, unsigned key, float) { return key == at.key; },
      [&](marked_keys const& equal) {
        bool const here =
            equal.before <= last && last - equal.before < static_cast<unsigned>(__popc(equal.bits));
        if (here) *end = equal.key(last - equal.before) + 1;
      });
  __syncthreads();
  return *end;
}

/// Writes this CTA's kept keys, in order, to kept [capacity]. Returns the mass of the ranked keys
/// that this thread saw dropped; 0 where masses are not read. `room` [tile] is shared memory.
template <collective::masses Also>
__device__ std::uint64_t write_kept(collective::list_keys const& keys, cut const& at, int ties_end,
                                    unsigned* warps, unsigned* room, int* kept,
                                    int capacity) noexcept {
  using namespace collective;
  std::uint64_t dropped = 0;
  unsigned* const staged = room + keys.each * warp_index();
  unsigned const base = at.above_before + smaller(at.equal_before, at.ties);
  each_marked<Also>(
      keys, warps,
      [&](int j, unsigned key, float mass) {
        bool const stays = key > at.key || (key == at.key && j < ties_end);
        if (Also == masses::yes && !stays && is_ranked(key)) dropped += keys.fixed(mass);
        return stays;
      },
      [&](marked_keys const& m) {
        // By way of shared memory, where this warp has read its ranks: neighbours write neighbours.
        unsigned to = m.lanes;
        for (unsigned rest = m.bits; rest != 0; rest &= rest - 1) {
          staged[to++] = static_cast<unsigned>(m.first + __ffs(static_cast<int>(rest)) - 1);
        }
        __syncwarp();
        unsigned const start = base + m.before - m.lanes;
        for (unsigned n = static_cast<unsigned>(lane_index()); n < m.all; n += 32) {
          if (start + n < static_cast<unsigned>(capacity))
            kept[start + n] = static_cast<int>(staged[n]);
        }
      });
  return dropped;
}

/// Writes kept, kept_counts and recalls of every list of the range. `Probed`: masses mean
/// something. Grid: a team of CTAs for each list.
template <class Budget, bool Probed>
__global__ void __launch_bounds__(collective::team::threads, 2)
    select_lists(__grid_constant__ collective::list_frame const f, Budget budget,
                 reach_view reached, plan_view<device> plan) {
  using namespace collective;
  extern __shared__ unsigned room[];
  __shared__ search_memory<unsigned> search;
  __shared__ unsigned warps[team::warps];
  __shared__ int last_tie;
  __shared__ unsigned texts_before, all_texts, count;
  __shared__ unsigned long long dropped;
  team const t = team::current();
  int const list = t.divides(static_cast<int>(blockIdx.x));
  list_keys const keys(f, list, t, room);
  std::int64_t const to = plan.list(keys.b, keys.c, keys.g);
  bool const speaks = t.rank == 0 && threadIdx.x == 0;
  if (keys.rows == 0) {
    if (speaks) {
      plan.kept_counts[to] = 0;
      plan.recalls[to] = Probed ? 1.f : -1.f;
    }
    return;
  }
  if (threadIdx.x == 0) dropped = 0;
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
  int const ties_end = end_of_ties(keys, at, found.equal, warps, &last_tie);
  std::uint64_t const mine = write_kept<Probed ? masses::yes : masses::no>(
      keys, at, ties_end, warps, room, plan.kept + to * plan.capacity, plan.capacity);
  float recall = -1.f;
  if constexpr (Probed) {
    std::uint64_t const sum = warp_sum(mine);
    if (lane_index() == 0) atomicAdd(&dropped, sum);
    t.sync();
    if (t.rank == 0 && warp_index() == 0) {
      std::uint64_t const all =
          warp_sum(lane_index() < t.size ? std::uint64_t{t.at(dropped, lane_index())} : 0);
      auto const held = static_cast<std::int64_t>(keys.whole() - all);
      recall =
          keys.pairs > 0
              ? static_cast<float>(static_cast<double>(held) / static_cast<double>(keys.whole()))
              : 1.f;
    }
  }
  t.sync();  // a CTA stays as long as others read its shared memory
  if (!speaks) return;
  plan.kept_counts[to] = smaller(static_cast<int>(count + all_texts), plan.capacity);
  plan.recalls[to] = recall;
}

}  // namespace omnisparse::kernel
