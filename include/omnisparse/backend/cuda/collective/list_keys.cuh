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
  unsigned const bits = __float_as_uint(score == score ? score + 0.f : -INFINITY);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline bool is_ranked(unsigned key) noexcept {
  return key != no_candidate && key != text_key;
}

/// 2^exponent.
__device__ inline float power_of_two(int exponent) noexcept {
  return __uint_as_float(static_cast<unsigned>(exponent + 127) << 23);
}

/// Which numbers of a key a pass looks at.
enum class reads : unsigned { nothing = 0, score = 1, mass = 2, both = 3 };

/// One list: its candidates and their numbers.
struct list_keys {
  int b = 0, c = 0, g = 0;
  int rows = 0;      ///< of the chunk that exist; 0: nothing is kept
  int pairs = 0;     ///< the whole mass of the probe rows
  int exponent = 0;  ///< a mass of 1 is 2^exponent in fixed point: all sums stay below 2^61
  int split = 0;     ///< see histogram
  far_candidates far;
  float const* score = nullptr;    ///< [keys]
  float const* mass = nullptr;     ///< [keys]
  segment const* kinds = nullptr;  ///< of sequence b; null: all visual
  std::int64_t kinds_stride = 0;
  int begin = 0, end = 0;  ///< the keys of this warp

  static __device__ list_keys of(list_frame const& f, int list, team const& t) noexcept {
    list_keys l;
    int const heads = f.shape.kv_heads;
    l.b = f.range.batch_of(list, heads);
    l.c = f.range.chunk_of(list, heads);
    l.g = list % heads;
    sequence_extent const extent = extent_of(f.shape, f.in, l.b);
    int const first = l.c * f.chunk_rows;
    l.rows = clamped(extent.q_tokens - first, 0, f.chunk_rows);
    if (l.rows == 0) return l;
    l.far = candidates_of(f.near, extent.position(first), extent.position(first + l.rows - 1),
                          extent.kv_tokens, f.limit);
    l.pairs = larger(0, f.scores.pairs[list]);
    l.exponent = larger(0, __clz(l.far.size()) + __clz(l.pairs) - 3);
    l.split = smaller(31, __clz(l.far.size()));
    l.score = f.scores.score + std::int64_t{list} * f.scores.keys;
    l.mass = f.scores.mass + std::int64_t{list} * f.scores.keys;
    if (!f.in.segments.is_null()) {
      l.kinds = f.in.segments.at(l.b);
      l.kinds_stride = f.in.segments.stride(1);
    }
    l.share_out(t);
    return l;
  }

  /// A mass; NaN, and what no probability can be, is moved into [0, pairs].
  __device__ float bounded(float m) const noexcept {
    return fminf(fmaxf(m, 0.f), static_cast<float>(pairs));
  }
  __device__ float mass_of(int j) const noexcept { return bounded(__ldg(mass + j)); }
  /// A mass in fixed point, and the whole mass.
  __device__ std::uint64_t fixed(float m) const noexcept {
    return __float2ull_rn(m * power_of_two(exponent));
  }
  __device__ std::uint64_t whole() const noexcept {
    return static_cast<std::uint64_t>(pairs) << exponent;
  }
  __device__ bool is_text(int j) const noexcept {
    return kinds != nullptr && kinds[j * kinds_stride] == segment::text;
  }

  /// Shows this warp's keys in order, four consecutive ones a lane: visit(j, keys, masses). Keys
  /// are ranks by score, or some rank where scores are not read. By whole warps.
  template <reads What, class Visit>
  __device__ void each_four(Visit const& visit) const noexcept {
    constexpr bool scores = (static_cast<unsigned>(What) & 1u) != 0;
    constexpr bool masses = (static_cast<unsigned>(What) & 2u) != 0;
    constexpr int ahead = What == reads::both ? 2 : 4;  // loads in flight
    for (int first = begin; first < end; first += ahead * 128) {
      float4 s[ahead] = {}, m[ahead] = {};
#pragma unroll
      for (int n = 0; n < ahead; ++n) {
        int const j = first + n * 128 + lane_index() * 4;
        if (j >= end) continue;
        if constexpr (scores) s[n] = __ldg(reinterpret_cast<float4 const*>(score + j));
        if constexpr (masses) m[n] = __ldg(reinterpret_cast<float4 const*>(mass + j));
      }
#pragma unroll
      for (int n = 0; n < ahead; ++n) {
        int const block = first + n * 128, j = block + lane_index() * 4;
        if (block >= end) break;
        unsigned keys[4] = {rank_of(s[n].x), rank_of(s[n].y), rank_of(s[n].z), rank_of(s[n].w)};
        if (!are_ranked(block)) {
          for (int i = 0; i < 4; ++i) {
            if (!far.contains(j + i)) keys[i] = no_candidate;
            else if (is_text(j + i)) keys[i] = text_key;
          }
        }
        float const held[4] = {bounded(m[n].x), bounded(m[n].y), bounded(m[n].z), bounded(m[n].w)};
        visit(j, keys, held);
      }
    }
  }

 private:
  // Is every key of a block of 128 a candidate, and none text?
  __device__ bool are_ranked(int block) const noexcept {
    auto const holds = [&](key_range r) { return r.begin <= block && block + 128 <= r.end; };
    return kinds == nullptr && (holds(far.left) || holds(far.right));
  }

  // Warps in order of CTA and warp, each a run of whole 128s.
  __device__ void share_out(team const& t) noexcept {
    int const low = (far.left.size() > 0 ? far.left.begin : far.right.begin) / 4 * 4;
    int const high = far.right.size() > 0 ? far.right.end : far.left.end;
    int const warps = static_cast<int>(blockDim.x) / 32;
    int const each = ceil_div(larger(0, high - low), t.size * warps * 128) * 128;
    std::int64_t const first = low + std::int64_t{each} * (t.rank * warps + warp_index());
    begin = static_cast<int>(smaller<std::int64_t>(first, high));
    end = static_cast<int>(smaller<std::int64_t>(first + each, high));
  }
};

}  // namespace omnisparse::collective
