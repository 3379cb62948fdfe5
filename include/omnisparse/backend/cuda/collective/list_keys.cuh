/// @file
/// The keys that one list is chosen from, shared out among the CTAs of a team.
#pragma once

#include <omnisparse/backend/cuda/chunk_range.cuh>
#include <omnisparse/backend/cuda/collective/radix_search.cuh>

namespace omnisparse::collective {

/// What all lists of one launch have in common.
struct list_frame {
  attention_shape shape;
  inputs<device> in;
  near_field near;
  mask limit = mask::causal;
  int chunk_rows = 1;
  chunk_range range;
  scores_view scores;
};

/// A score as an integer of the same order. NaN ranks with -infinity, last; -0 is 0.
__device__ inline unsigned rank_of(float score) noexcept {
  int const bits = __float_as_int(fmaxf(score + 0.f, -INFINITY));
  return static_cast<unsigned>(bits ^ (bits >> 31 | static_cast<int>(0x80000000u)));
}
__device__ inline bool is_ranked(unsigned key) noexcept {
  return key != no_candidate && key != text_key;
}

/// 2^exponent.
__device__ inline float power_of_two(int exponent) noexcept {
  return __uint_as_float(static_cast<unsigned>(exponent + 127) << 23);
}

/// Where a pass over the keys has their ranks from: it needs none; from the scores, to be kept in
/// shared memory where there is room; from there, or again from the scores where there is not.
enum class ranks { none, scores, kept };
/// Does a pass look at masses?
enum class masses { no, yes };

/// One list: its candidates and their numbers.
struct list_keys {
  list_frame const& frame;
  int b = 0, c = 0, g = 0;
  int rows = 0;          ///< of the chunk that exist; 0: nothing is kept
  int pairs = 0;         ///< the whole mass of the probe rows
  int exponent = 0;      ///< a mass of 1 is 2^exponent in fixed point: all sums stay below 2^61
  int split = 0;         ///< see histogram
  std::int64_t row = 0;  ///< of the scores
  far_candidates far = {};
  int begin = 0, end = 0;     ///< the keys of this CTA
  int each = 128;             ///< of them belong to a warp, then to the next one: a tile
  unsigned* known = nullptr;  ///< [end - begin] in shared memory: their ranks; or null

  /// `room` [tile] is shared memory for the ranks of a CTA that has one tile, or null.
  __device__ list_keys(list_frame const& f, int list, team const& t, unsigned* room) noexcept
      : frame(f) {
    int const heads = f.shape.kv_heads;
    b = f.range.batch_of(list, heads);
    c = f.range.chunk_of(list, heads);
    g = list % heads;
    sequence_extent const extent = extent_of(f.shape, f.in, b);
    int const first = c * f.chunk_rows;
    rows = clamped(extent.q_tokens - first, 0, f.chunk_rows);
    if (rows == 0) return;
    far = candidates_of(f.near, extent.position(first), extent.position(first + rows - 1),
                        extent.kv_tokens, f.limit);
    pairs = larger(0, f.scores.pairs[list]);
    exponent = larger(0, __clz(far.size()) + __clz(pairs) - 3);
    split = smaller(31, __clz(far.size()));
    row = std::int64_t{list} * f.scores.keys;
    share_out(t, room);
  }

  /// A mass; NaN, and what no probability can be, is moved into [0, pairs].
  __device__ float bounded(float m) const noexcept {
    return fminf(fmaxf(m, 0.f), static_cast<float>(pairs));
  }
  /// A mass in fixed point, and the whole mass.
  __device__ std::uint64_t fixed(float m) const noexcept {
    return __float2ull_rn(m * power_of_two(exponent));
  }
  __device__ std::uint64_t whole() const noexcept {
    return static_cast<std::uint64_t>(pairs) << exponent;
  }
  __device__ bool has_texts() const noexcept { return !frame.in.segments.is_null(); }
  __device__ bool is_text(int j) const noexcept {
    return has_texts() && frame.in.segments(b, j) == segment::text;
  }

  /// Keys of this CTA that its warps look at together: `tile` consecutive ones.
  __device__ int tile() const noexcept { return each * team::warps; }

  /// Shows all keys of this CTA: see `each_block_of`.
  template <ranks From, masses Also, class Visit>
  __device__ void each_block(Visit const& visit) const noexcept {
    for (int first = begin; first < end; first += tile()) each_block_of<From, Also>(first, visit);
  }

  /// Shows this warp's keys of the tile from `first` on, in order, 128 at a time: visit(block,
  /// keys, held), where keys[i] is the rank of key block + 32 i + lane and held[i] its mass. By
  /// whole warps.
  template <ranks From, masses Also, class Visit>
  __device__ void each_block_of(int first, Visit const& visit) const noexcept {
    first += each * warp_index();
    int const stop = smaller(first + each, end);
    if (From == ranks::kept && known == nullptr) {
      walk<ranks::scores, Also>(first, stop, visit);
    } else {
      walk<From, Also>(first, stop, visit);
    }
  }

 private:
  template <ranks From, masses Also, class Visit>
  __device__ void walk(int first, int stop, Visit const& visit) const noexcept {
    constexpr bool reads_scores = From == ranks::scores, reads_masses = Also == masses::yes;
    constexpr int ahead = reads_scores && reads_masses ? 2 : 4;  // blocks in flight
    float const* const score = frame.scores.score + row;
    float const* const mass = frame.scores.mass + row;
    for (; first < stop; first += ahead * 128) {
      float s[ahead][4] = {}, m[ahead][4] = {};
#pragma unroll
      for (int n = 0; n < ahead * 4; ++n) {
        int const j = first + n * 32 + lane_index();
        if (reads_scores && j < stop) s[n / 4][n % 4] = __ldg(score + j);
        if (reads_masses && j < stop) m[n / 4][n % 4] = __ldg(mass + j);
      }
#pragma unroll
      for (int n = 0; n < ahead; ++n) {
        int const block = first + n * 128;
        if (block >= stop) break;
        unsigned keys[4];
        float held[4];
        unsigned* const room = known + (block - begin + lane_index());
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          keys[i] = From == ranks::kept ? room[i * 32] : rank_of(s[n][i]);
          held[i] = bounded(m[n][i]);
        }
        if (From != ranks::kept) sort_out(block, keys);
        if (From == ranks::scores && known != nullptr) {
#pragma unroll
          for (int i = 0; i < 4; ++i) room[i * 32] = keys[i];
        }
        visit(block, keys, held);
      }
    }
  }

  // Names the keys of a block that are no candidates, and those that are text.
  __device__ void sort_out(int block, unsigned (&keys)[4]) const noexcept {
    auto const holds = [&](key_range r) { return r.begin <= block && block + 128 <= r.end; };
    if (!has_texts() && (holds(far.left) || holds(far.right))) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int const j = block + i * 32 + lane_index();
      if (!far.contains(j)) keys[i] = no_candidate;
      else if (is_text(j)) keys[i] = text_key;
    }
  }

  // CTAs have consecutive keys, and so have the warps of a tile: at most 1024 each.
  __device__ void share_out(team const& t, unsigned* room) noexcept {
    int const low = (far.left.size() > 0 ? far.left.begin : far.right.begin) / 32 * 32;
    int const high = far.right.size() > 0 ? far.right.end : far.left.end;
    int const blocks = ceil_div(larger(0, high - low), team::warps * 128);  // for all warps
    int const of_warp = t.divides(blocks + t.size - 1);
    std::int64_t const share = std::int64_t{of_warp} * team::warps * 128;
    begin = static_cast<int>(smaller<std::int64_t>(low + share * t.rank, high));
    end = static_cast<int>(smaller<std::int64_t>(low + share * (t.rank + 1), high));
    each = clamped(of_warp, 1, 8) * 128;
    if (share <= tile()) known = room;
  }
};

}  // namespace omnisparse::collective
