/// @file
/// Which rows of a chunk are probed, and how their far keys are told from the others.
#pragma once

#include <omnisparse/backend/cuda/chunk_range.cuh>
#include <omnisparse/backend/cuda/row_schedule.cuh>
#include <omnisparse/core/call.hpp>
#include <omnisparse/core/policy.hpp>

#include <cub/block/block_scan.cuh>

#include <concepts>

namespace omnisparse::kernel {

/// What one warp of the first pass found in its share of the keys.
struct probe_partial {
  float high, total;  ///< log2 units, as collective::log_sum
};

/// The probe rows of a range of chunks. A unit is a (sequence, chunk of the range); a pair is a
/// probe row in one head of a group, n * group + head in group for the n-th probe.
struct probe_rows {
  int2* places = nullptr;     ///< [units, chunk_rows * group], row and head in group of pairs
  int* counts = nullptr;      ///< [units]
  int* far_ends = nullptr;    ///< [units]; no pair sees a key from there on as far
  unsigned* marks = nullptr;  ///< [units, words], a bit for each row
  int* most = nullptr;        ///< [1], the largest count
  float* lse = nullptr;       ///< [batch, q_heads, q_tokens], nats, of probe rows
  probe_partial* partial = nullptr;  ///< [lists, slots], of the portable first pass
  int chunk_rows = 0;
  int slots = 0;
  int group = 1;

  /// Most parts that the keys are cut into, fewest keys of a part, about most parts of all pairs.
  static constexpr int most_splits = 32, split_keys = 256, most_slots = 1 << 22;
  /// Blocks of threads that merge the parts of one list.
  static constexpr int merge_blocks = 4;

  static probe_rows take(detail::arena& arena, attention_shape const& shape, int chunk_rows,
                         chunk_range const& range) noexcept {
    auto const units =
        static_cast<std::size_t>(shape.batch) * static_cast<std::size_t>(range.count);
    auto const lists = static_cast<std::size_t>(range.lists(shape));
    probe_rows p;
    p.group = shape.group();
    p.chunk_rows = chunk_rows;
    std::int64_t const pairs = std::int64_t{chunk_rows} * p.group;
    // Room to split the keys of a thousand pairs where lists are few; more need no splitting.
    std::int64_t const splits = smaller(most_splits, ceil_div(shape.kv_tokens, split_keys));
    std::int64_t const share = most_slots / larger(1, range.lists(shape));
    p.slots = static_cast<int>(larger(pairs, smaller(1024 * splits, share)));
    p.places = arena.take<int2>(units * static_cast<std::size_t>(pairs));
    p.counts = arena.take<int>(units);
    p.far_ends = arena.take<int>(units);
    p.marks = arena.take<unsigned>(units * static_cast<std::size_t>(p.words()));
    p.most = arena.take<int>(1);
    p.lse = arena.take<float>(static_cast<std::size_t>(shape.batch) *
                              static_cast<std::size_t>(shape.q_heads) *
                              static_cast<std::size_t>(shape.q_tokens));
    p.partial = arena.take<probe_partial>(lists * static_cast<std::size_t>(p.slots));
    return p;
  }
  OMNISPARSE_HD constexpr int words() const noexcept { return ceil_div(chunk_rows, 32); }
  __device__ int2* places_of(int unit) const noexcept {
    return places + std::int64_t{unit} * chunk_rows * group;
  }
  __device__ float& lse_of(attention_shape const& shape, int b, int g, int2 place) const noexcept {
    return lse[(std::int64_t{b} * shape.q_heads + g * group + place.y) * shape.q_tokens + place.x];
  }
  /// Into how many parts the keys are cut.
  __device__ int splits(int kv_tokens) const noexcept {
    return clamped(smaller(slots / larger(1, *most * group), ceil_div(kv_tokens, split_keys)), 1,
                   most_splits);
  }
};

/// Where a list stands in its range.
struct list_place {
  int unit, b, c, g;
  __device__ static list_place of(int list, attention_shape const& shape,
                                  chunk_range const& range) noexcept {
    return {list / shape.kv_heads, range.batch_of(list, shape.kv_heads),
            range.chunk_of(list, shape.kv_heads), list % shape.kv_heads};
  }
};

/// Asks the scorer which rows that see anything it probes: a bit of marks each. Also zeroes what
/// `list_probes` adds to. Grid: units * ceil(words / 32).
template <class Scorer, class Inputs>
__global__ void __launch_bounds__(1024)
    mark_probes(attention_shape shape, Inputs const __grid_constant__ in, chunk_range range,
                mask limit, probe_rows p, row_schedule schedule, Scorer scorer) {
  int const parts = ceil_div(p.words(), 32), unit = static_cast<int>(blockIdx.x) / parts;
  int const i = static_cast<int>(blockIdx.x) % parts * 1024 + static_cast<int>(threadIdx.x);
  int const first = (range.first + unit % range.count) * p.chunk_rows;
  sequence_extent const extent = extent_of(shape, in, unit / range.count);
  int const rows = clamped(extent.q_tokens - first, 0, p.chunk_rows);
  bool const is_probe =
      i < rows &&
      near_field::visible(extent.position(first + i), extent.kv_tokens, limit).end > 0 &&
      scorer.probes(i, rows);
  unsigned const word = __ballot_sync(~0u, is_probe);
  if (threadIdx.x % 32 == 0 && i / 32 < p.words()) {
    p.marks[std::int64_t{unit} * p.words() + i / 32] = word;
  }
  if (blockIdx.x != 0 || threadIdx.x != 0) return;
  *p.most = 0;
  if (schedule.tile_count != nullptr) *schedule.tile_count = 0, *schedule.next = 0;
}

/// Lists the marked rows of each unit, and cuts them into the tiles of a schedule if there is one.
/// Grid: units.
template <class Inputs>
__global__ void __launch_bounds__(1024)
    list_probes(attention_shape shape, Inputs const __grid_constant__ in, chunk_range range,
                near_field near, mask limit, probe_rows p, row_schedule schedule,
                scores_view scores) {
  using scan = cub::BlockScan<int, 1024>;
  __shared__ typename scan::TempStorage memory;
  __shared__ int first_tile;
  int const unit = blockIdx.x, b = unit / range.count, c = range.first + unit % range.count;
  int const thread = static_cast<int>(threadIdx.x), first = c * p.chunk_rows;
  sequence_extent const extent = extent_of(shape, in, b);
  unsigned const* const marks = p.marks + std::int64_t{unit} * p.words();
  int2* const places = p.places_of(unit);
  int const each = ceil_div(p.words(), 1024), begin = thread * each;
  int const end = smaller(p.words(), begin + each);
  int count = 0, place = 0, all = 0;
  for (int n = begin; n < end; ++n) count += __popc(marks[n]);
  scan(memory).ExclusiveSum(count, place, all);
  int const pairs = all * p.group, heads = shape.kv_heads;
  int row = first;
  std::int64_t to = std::int64_t{place} * p.group;
  for (int n = begin; n < end && count > 0; ++n) {
    for (unsigned rest = marks[n]; rest != 0; rest &= rest - 1) {
      row = first + n * 32 + __ffs(static_cast<int>(rest)) - 1;
      for (int h = 0; h < p.group; ++h) places[to++] = {row, h};
    }
  }
  if (count > 0 && place + count == all) {  // the last of the rows
    p.far_ends[unit] = limit == mask::full
                           ? extent.kv_tokens
                           : near.window_of(extent.position(row), extent.kv_tokens, limit).begin;
  }
  if (thread == 0) {
    p.counts[unit] = all;
    atomicMax(p.most, all);
    if (all == 0) p.far_ends[unit] = 0;
    for (int g = 0; g < heads; ++g) scores.pairs[unit * heads + g] = pairs;
  }
  if (schedule.rows == nullptr) return;
  // Any order of tiles gives the same rows.
  int const tiles = ceil_div(pairs, schedule.tile_rows);
  if (thread == 0) first_tile = atomicAdd(schedule.tile_count, tiles * heads);
  __syncthreads();
  auto const list_of = [&](int g) { return (b * schedule.chunks + c) * heads + g; };
  for (int n = thread; n < tiles * heads; n += 1024) {
    int const at = (tiles - 1 - n / heads) * schedule.tile_rows;  // longest first
    schedule.tiles[first_tile + n] = {list_of(n % heads), at,
                                      smaller(schedule.tile_rows, pairs - at), row_class::rescued};
  }
  for (int n = thread; n < pairs; n += 1024) {
    int2 const pair = places[n];
    for (int g = 0; g < heads; ++g) {
      schedule.rows[schedule.begin(shape, list_of(g)) + n] = pair.x * p.group + pair.y;
    }
  }
}

/// Does a pair of this log-sum-exp tell anything of the keys? Where it is NaN or infinite, no key
/// has a share: the pair's row counts as zeros then, lest NaN in it meet all keys.
__device__ inline bool tells(float lse) noexcept { return is_finite(lse); }

/// What the second pass knows of a stage of pairs.
template <int N>
struct probe_columns {
  float lse[N];  ///< log2 units; inf where there is no pair, or none that tells anything
  int left[N];   ///< far are the keys before the one, but for the sinks,
  int right[N];  ///< and from the other on
};

/// How the keys of a block see a stage of pairs.
enum class probe_view : unsigned char {
  none,   ///< no key is far for any pair
  some,   ///< asked key by key
  plain,  ///< every key is far for every pair
};

/// How keys [begin, end) see pairs whose windows ascend from `low` to `high`.
OMNISPARSE_HD constexpr probe_view view_of(int begin, int end, key_range low, key_range high,
                                           int sinks, bool full) noexcept {
  bool const some = (begin < high.begin && end > sinks) || (full && end > low.end);
  bool const all = (begin >= sinks && end <= low.begin) || (full && begin >= high.end);
  return some && begin < end ? (all ? probe_view::plain : probe_view::some) : probe_view::none;
}

/// Writes what was seen of a key, and what the scorer makes of it.
template <class Scorer>
__device__ void write_score(scores_view const& scores, Scorer const& scorer, int list, int key,
                            observation::probe_mass seen) noexcept {
  std::int64_t const at = std::int64_t{list} * scores.keys + key;
  token const t{key, segment::visual, false};
  // Pairs that see an infinite or NaN key tell nothing; others have no share for it.
  if (is_nan(seen.mass)) seen.mass = 0.f;
  scores.mass[at] = seen.mass;
  if constexpr (std::same_as<observed<Scorer>, observation::probe_mass>) {
    scores.score[at] = scorer.score(seen, t);
  } else {
    scores.score[at] = scorer.score({}, t);
  }
}

}  // namespace omnisparse::kernel
