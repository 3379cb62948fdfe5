/// @file
/// The key at which the largest keys together reach a wanted count or mass, digit by digit.
#pragma once

#include <omnisparse/backend/cuda/collective/histogram.cuh>

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
  unsigned above;      ///< keys above it, of all CTAs
  unsigned above_before;
  W equal;  ///< keys that equal it, of all CTAs
  W equal_before;
};

/// The keys of all CTAs whose first digit is the threshold's: few in most lists, and then the other
/// digits are searched among them, by each CTA for itself.
template <class W>
struct key_pool {
  static constexpr bool weighs = histogram<W>::weighs;
  static constexpr int room = weighs ? 2048 : 3072;  // 99 KB of shared memory hold all we need

  unsigned key[room];
  std::uint64_t mass[weighs ? room : 1];
  unsigned taken;  ///< by keys of this CTA

  __device__ W weight(int n) const noexcept {
    if constexpr (weighs) {
      return {1, mass[n]};
    } else {
      return 1;
    }
  }
  /// Shows the first `size` keys as `find_threshold` wants them.
  template <class Visit>
  __device__ void each(int size, Visit const& visit) const noexcept {
    for (int first = warp_index() * 128; first < size; first += 4 * team::threads) {
      int const n = first + lane_index();
      unsigned keys[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) keys[i] = n + i * 32 < size ? key[n + i * 32] : no_candidate;
      visit(keys, [&](int i) { return mass[weighs ? n + i * 32 : 0]; });
    }
  }
};

/// Shared memory of a search.
template <class W>
struct search_memory {
  static constexpr int groups = histogram<W>::groups;
  static constexpr int group_bins = histogram<W>::group_bins;

  histogram<W> h[2];
  W sums[2][groups];                 ///< of the groups of this CTA; every other pass
  W chosen[team::most][group_bins];  ///< the bins of one group of each CTA
  unsigned starts[team::most];       ///< keys in the chosen bin of the CTAs of lower rank
  key_pool<W> pool;                  ///< what the second digit has to tell apart
  threshold<W> found;
  int group;
  unsigned texts;  ///< text keys of this CTA
};

/// One step down, by one warp. Each lane holds `Slots` consecutive slots, the largest keys in lane
/// 0; `read(rank, s)` is what slot s of the lane is in the CTA of that rank. `lack_of(whole)` is
/// the weight that is lacking. Returns the slot that reaches it, counted from the largest, or -1
/// where nothing is lacking.
template <int Slots, class Team, class W, class Read, class Lack>
__device__ int step_down(Team const& t, threshold<W>& found, Read const& read,
                         Lack const& lack_of) noexcept {
  W all[Slots] = {}, lane_all = {};
  unsigned before[Slots] = {}, lane_before = 0;
#pragma unroll
  for (int s = 0; s < Slots; ++s) {
#pragma unroll
    for (int rank = 0; rank < Team::most; ++rank) {
      W const part = rank < t.size ? read(rank, s) : W{};
      all[s] += part;
      before[s] += rank < t.rank ? count_of(part) : 0;
    }
    lane_all += all[s];
    lane_before += before[s];
  }
  auto const own = weight_of(lane_all), sum = warp_scan(own);
  found.lack = lack_of(shuffle(sum, 31));
  if (found.lack == 0) return -1;
  unsigned const reached = __ballot_sync(whole_warp, sum >= found.lack);
  int const at = reached == 0 ? 31 : __ffs(static_cast<int>(reached)) - 1;
  // Every lane walks its slots as if it were the one; then the one is asked.
  auto passed = sum - own;
  unsigned above = 0, above_before = 0;
  int slot = 0;
#pragma unroll
  for (int s = 0; s + 1 < Slots; ++s) {
    if (slot != s || passed + weight_of(all[s]) >= found.lack) continue;
    passed += weight_of(all[s]);
    above += count_of(all[s]);
    above_before += before[s];
    slot = s + 1;
  }
  if (lane_index() < at) above = count_of(lane_all), above_before = lane_before;
  if (lane_index() > at) above = above_before = 0;
  found.lack -= shuffle(passed, at);
  found.above += warp_sum(above);
  found.above_before += warp_sum(above_before);
  return at * Slots + shuffle(slot, at);
}

/// Pass N of a search: counts a digit and chooses its value. See `find_threshold`.
template <int N, class Team, class W, class Each, class Wanted>
__device__ bool find_digit(Team const& t, search_memory<W>& m, int split, Each const& each,
                           Wanted const& wanted) noexcept {
  constexpr digit d = digit::nth(N);
  constexpr int group_bins = search_memory<W>::group_bins;
  histogram<W>& now = m.h[N % 2];
  unsigned const prefix = m.found.key;
  each([&](unsigned const(&key)[4], auto const& mass) {
    int bin[4];
    bool takes[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      bin[i] = d.of(key[i]);
      takes[i] = d.follows(prefix, key[i]);
    }
    now.add(bin, takes, mass);
  });
  __syncthreads();
  if constexpr (N == 0) {  // what is not ranked is counted in the outermost bins
    if (threadIdx.x == 0) {
      now.drop(d.of(no_candidate));
      m.texts = now.drop(d.of(text_key));
    }
    __syncthreads();
  }
  if constexpr (N == 0) t.wait();  // now all CTAs have begun
  for (int g = warp_index(); g < m.groups; g += team::warps) {
    W const sum = now.group(g);
    if (lane_index() == 0) m.sums[N % 2][g] = sum;
  }
  t.sync();
  if constexpr (N == 1) m.h[0].clear(split);  // nobody reads the first digit any more
  if (warp_index() == 0) {
    threshold<W> next = m.found;
    int const group = step_down<1>(
        t, next, [&](int rank, int) { return t.at(m.sums[N % 2], rank)[lane_index()]; },
        [&](auto whole) {
          if (N > 0) return next.lack;
          std::uint64_t weight = 0;
          if (lane_index() == 0) weight = wanted(whole);
          return shuffle(weight, 0);
        });
    __syncwarp();  // every lane has read what is written now
    if (lane_index() == 0) m.found = next, m.group = group;
  }
  __syncthreads();
  if (m.group < 0) return false;
  int const last = histogram<W>::bins - 1 - m.group * group_bins;
  for (int n = static_cast<int>(threadIdx.x); n < t.size * group_bins; n += team::threads) {
    int const rank = n / group_bins, b = n % group_bins;
    m.chosen[rank][b] = t.at(now, rank).bin(last - b);
  }
  __syncthreads();
  if (warp_index() == 0) {
    threshold<W> next = m.found;
    int const slot = step_down<2>(
        t, next, [&](int rank, int s) { return m.chosen[rank][2 * lane_index() + s]; },
        [&](auto) { return next.lack; });
    next.key |= static_cast<unsigned>(last - slot) << d.shift;
    int const rank = lane_index();
    W const equal = rank < t.size ? m.chosen[rank][slot] : W{};
    next.equal = warp_sum(equal);
    next.equal_before = warp_sum(rank < t.rank ? equal : W{});
    unsigned const until = warp_scan(count_of(equal));
    if (rank < t.size) m.starts[rank] = until - count_of(equal);
    __syncwarp();
    if (lane_index() == 0) m.found = next;
  }
  __syncthreads();
  return true;
}

/// Brings the keys with the first digit found, of all CTAs and in their order, into the pool of
/// every CTA.
template <class W, class Again>
__device__ void gather_keys(team const& t, search_memory<W>& m, Again const& again) noexcept {
  constexpr digit later = digit::nth(1);
  constexpr bool weighs = key_pool<W>::weighs;
  key_pool<W>& pool = m.pool;
  unsigned const prefix = m.found.key, from = m.starts[t.rank], size = count_of(m.found.equal);
  again([&](unsigned const(&key)[4], auto const& mass) {
    unsigned mine = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) mine += later.follows(prefix, key[i]) ? 1u : 0u;
    if (mine == 0) return;
    unsigned to = from + atomicAdd(&pool.taken, mine);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!later.follows(prefix, key[i])) continue;
      pool.key[to] = key[i];
      if constexpr (weighs) pool.mass[to] = mass(i);
      ++to;
    }
  });
  t.sync();
  for (unsigned n = threadIdx.x; n < size; n += team::threads) {
    int rank = t.size - 1;
    while (n < m.starts[rank]) --rank;
    if (rank == t.rank) continue;
    key_pool<W> const& theirs = t.at(pool, rank);
    pool.key[n] = theirs.key[n];
    if constexpr (weighs) pool.mass[n] = theirs.mass[n];
  }
  __syncthreads();
}

/// Counts the first `size` keys of the pool, those of lower ranks, as before this CTA.
template <class W>
__device__ void count_before(search_memory<W>& m, int size) noexcept {
  unsigned const key = m.found.key;
  unsigned above = 0;
  W equal = {};
  for (int n = static_cast<int>(threadIdx.x); n < size; n += team::threads) {
    above += m.pool.key[n] > key ? 1u : 0u;
    equal += m.pool.key[n] == key ? m.pool.weight(n) : W{};
  }
  above = warp_sum(above);
  equal = warp_sum(equal);
  if (lane_index() == 0) {
    add_to(m.found.above_before, above);
    add_to(m.found.equal_before, equal);
  }
  __syncthreads();
}

/// Searches among the keys that `first(visit)` and, later, `again(visit)` show: visit(keys, mass),
/// four keys a lane, by whole warps; mass(i) is asked for where it counts. `wanted(whole)`, asked
/// of one thread of each CTA, is the weight that keys at and above the threshold must reach, at
/// most the whole; 0: there is nothing to find, and false is returned. By all threads of all CTAs;
/// the answer is m.found. Other CTAs may look into m until the team's next barrier.
template <class W, class First, class Again, class Wanted>
__device__ bool find_threshold(team const& t, search_memory<W>& m, int split, First const& first,
                               Again const& again, Wanted const& wanted) noexcept {
  m.h[0].clear(split);
  m.h[1].clear(split);
  if (threadIdx.x == 0) m.found = {}, m.pool.taken = 0;
  __syncthreads();
  t.arrive();
  if (!find_digit<0>(t, m, split, first, wanted)) return false;
  unsigned const size = count_of(m.found.equal), before = m.starts[t.rank];
  if (size > m.pool.room) {
    return find_digit<1>(t, m, split, again, wanted) && find_digit<2>(t, m, split, again, wanted);
  }
  gather_keys(t, m, again);
  auto const pooled = [&](auto const& visit) { m.pool.each(static_cast<int>(size), visit); };
  find_digit<1>(alone{}, m, split, pooled, wanted);
  find_digit<2>(alone{}, m, split, pooled, wanted);
  count_before(m, static_cast<int>(before));
  return true;
}

}  // namespace omnisparse::collective
