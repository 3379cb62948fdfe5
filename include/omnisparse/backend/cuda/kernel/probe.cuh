/// @file
/// Probe rows: what a few rows of a chunk tell of the worth of its keys. Two passes over the keys:
/// the log-sum-exp of each probe row, then the sum of each key over the probe rows.
#pragma once

#include <omnisparse/backend/cuda/collective/log_sum.cuh>
#include <omnisparse/backend/cuda/collective/row_stage.cuh>
#include <omnisparse/backend/cuda/kernel/probe_rows.cuh>
#include <omnisparse/core/call.hpp>
#include <omnisparse/plan/plan.hpp>

namespace omnisparse::kernel {

inline constexpr int probe_threads = 256;

/// How a block of probe threads divides a product: each warp holds some rows in registers, all of
/// them pass over the same staged rows.
template <class T, int D>
struct probe_tile {
  static constexpr int tiles = sizeof(T) == 2 && D <= 128 ? 2 : 1;  ///< of 16 rows, a warp
  static constexpr int warp_rows = 16 * tiles;
  static constexpr int rows = probe_threads / 32 * warp_rows;
  static constexpr int blocks = tiles;                           ///< that share a multiprocessor
  static constexpr int staged = D * sizeof(T) <= 256 ? 64 : 32;  ///< rows of the other side
  static constexpr int stages = 3;                               ///< two on their way, one in use
  static constexpr int stage_elements = staged * collective::stage_stride<T, D>;
  static constexpr int bytes = stages * collective::stage_bytes<T, D>(staged);

  collective::row_pair<collective::product_t<T>, collective::product_parts<T>> held[tiles][D / 32];

  /// Takes the warp's rows: row_of(r) is row r < count, of `dim` elements; all else is zeros.
  template <class RowOf>
  __device__ void hold(bool vectors, int count, int dim, RowOf const& row_of) noexcept {
    int const lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int t = 0; t < tiles; ++t) {
      T const* rows[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        int const r = 16 * t + 8 * n + lane / 4;
        rows[n] = r < count ? row_of(r) + lane % 4 * 8 : nullptr;
      }
#pragma unroll
      for (int step = 0; step < D / 32; ++step) {
        collective::operand_t<T> both[2] = {};
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          if (rows[n] != nullptr && step * 32 + lane % 4 * 8 < dim) {
            both[n] = collective::load_octet(rows[n] + step * 32, vectors);
          }
        }
        held[t][step] = collective::settled(collective::pair_rows(both[0], both[1]));
      }
    }
  }
  /// The products with staged rows [first, first + 16): [tiles] by row, [2] by eight columns.
  __device__ void multiply(T const* stage, int first, float (&d)[tiles][2][4]) const noexcept {
    int const lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int step = 0; step < D / 32; ++step) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        auto const b = collective::staged_octet<D>(stage, first + 8 * n + lane / 4, step);
#pragma unroll
        for (int t = 0; t < tiles; ++t) collective::multiply(d[t][n], held[t][step], b);
      }
    }
  }
};

/// First pass: each item is (tile of pairs, chunk, part of the keys, sequence and KV head), so that
/// what reads the same keys runs together. Any grid does.
template <class T, int D, class Inputs>
__global__ void __launch_bounds__(probe_threads, probe_tile<T, D>::blocks)
    sum_probe_rows(attention_shape shape, Inputs const __grid_constant__ in,
                   tensor_view<T const, device> const __grid_constant__ q,
                   tensor_view<T const, device> const __grid_constant__ k, chunk_range range,
                   mask limit, probe_rows p, collective::logit_scale scale) {
  using tile_type = probe_tile<T, D>;
  constexpr int tiles = tile_type::tiles;
  extern __shared__ uint4 probe_bytes[];
  T* const stages = reinterpret_cast<T*>(probe_bytes);
  int const group = p.group, across = ceil_div(*p.most * group, tile_type::rows);
  int const splits = p.splits(shape.kv_tokens);
  int const part = round_up(ceil_div(shape.kv_tokens, splits), tile_type::staged);
  std::int64_t const items = std::int64_t{across} * range.lists(shape) * splits;
  bool const q_vectors = collective::has_vector_rows(q), k_vectors = collective::has_vector_rows(k);
  int const lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (std::int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    int const c = static_cast<int>(item / across % range.count);
    int const split = static_cast<int>(item / across / range.count % splits);
    int const slot = static_cast<int>(item / across / range.count / splits);
    int const b = slot / shape.kv_heads, g = slot % shape.kv_heads;
    int const unit = b * range.count + c, list = unit * shape.kv_heads + g;
    int const pairs = p.counts[unit] * group;
    int const first = static_cast<int>(item % across) * tile_type::rows;
    if (first >= pairs) continue;
    sequence_extent const extent = extent_of(shape, in, b);
    int2 const* const places = p.places_of(unit);
    auto const sees = [&](int pair) {
      return near_field::visible(extent.position(places[pair].x), extent.kv_tokens, limit).end;
    };
    int const own = first + warp * tile_type::warp_rows;
    tile_type tile;
    tile.hold(q_vectors, pairs - own, shape.dim, [&](int r) {
      int2 const place = places[own + r];
      return q.at(b, g * group + place.y, place.x);
    });
    int ends[2 * tiles];
#pragma unroll
    for (int n = 0; n < 2 * tiles; ++n) {
      int const pair = own + 8 * n + lane / 4;
      ends[n] = pair < pairs ? sees(pair) : 0;
    }
    int const plain_end = sees(first);  // keys before it are seen by every row
    int const begin = split * part;
    int const end = smaller(begin + part, sees(smaller(first + tile_type::rows, pairs) - 1));
    int const steps = begin < end ? ceil_div(end - begin, tile_type::staged) : 0;
    T const* const keys = k.at(b, g, begin);
    auto const stage = [&](int n) {
      if (n < steps) {
        int const key = n * tile_type::staged;
        collective::stage_rows<T, D, tile_type::staged, probe_threads>(
            stages + n % tile_type::stages * tile_type::stage_elements, k_vectors,
            end - begin - key, shape.dim, [&](int r) { return keys + (key + r) * k.stride(2); });
      }
      ptx::cp_async_commit();
    };
    collective::log_sum sums[4];
    stage(0);
    stage(1);
    for (int n = 0; n < steps; ++n) {
      ptx::cp_async_wait<1>();
      __syncthreads();
      stage(n + 2);
      if (own >= pairs) continue;
      T const* const at = stages + n % tile_type::stages * tile_type::stage_elements;
      int const key = begin + n * tile_type::staged;
      auto const add = [&](auto plain) {
#pragma unroll 1
        for (int n0 = 0; n0 < tile_type::staged; n0 += 16) {
          float d[tiles][2][4] = {};
          tile.multiply(at, n0, d);
#pragma unroll
          for (int r = 0; r < 2 * tiles; ++r) {
            float x[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              int const column = key + n0 + 8 * (e / 2) + 2 * (lane % 4) + e % 2;
              bool const visible = plain.value || column < ends[r];
              x[e] = visible ? d[r / 2][e / 2][2 * (r % 2) + e % 2] : -__builtin_huge_valf();
            }
            sums[r].add(x, scale.bits);
          }
        }
      };
      if (key + tile_type::staged <= plain_end) add(std::true_type{});
      else add(std::false_type{});
    }
    __syncthreads();  // before the next item's stages
    collective::log_sum const sum = collective::merge_quad(sums);
    int const pair = own + 8 * (lane % 4) + lane / 4;
    if (lane % 4 < 2 * tiles && pair < pairs) {
      p.partial[std::int64_t{list} * p.slots + std::int64_t{split} * pairs + pair] = {sum.high,
                                                                                      sum.total};
    }
  }
}

/// Merges the parts of each pair, in order. Grid: lists * merge_blocks.
static __global__ void __launch_bounds__(256)
    merge_probe_rows(attention_shape shape, chunk_range range, probe_rows p) {
  int const list = static_cast<int>(blockIdx.x) / p.merge_blocks;
  list_place const at = list_place::of(list, shape, range);
  int const pairs = p.counts[at.unit] * p.group, splits = p.splits(shape.kv_tokens);
  for (int n = static_cast<int>(blockIdx.x) % p.merge_blocks * 256 + static_cast<int>(threadIdx.x);
       n < pairs; n += p.merge_blocks * 256) {
    collective::log_sum sum;
    for (int split = 0; split < splits; ++split) {
      probe_partial const part =
          p.partial[std::int64_t{list} * p.slots + std::int64_t{split} * pairs + n];
      sum.merge({part.high, part.total});
    }
    p.lse_of(shape, at.b, at.g, p.places_of(at.unit)[n]) = sum.value() * collective::ln_2;
  }
}

/// Second pass: keys as rows in registers, pairs staged in order; a key's mass is added up by the
/// four lanes that hold it, always in the same order. Grid:
/// lists * ceil(keys / rows); chunks fastest, then keys.
template <class T, int D, class Scorer, class Inputs>
__global__ void __launch_bounds__(probe_threads, probe_tile<T, D>::blocks)
    score_keys(attention_shape shape, Inputs const __grid_constant__ in,
               tensor_view<T const, device> const __grid_constant__ q,
               tensor_view<T const, device> const __grid_constant__ k, near_field near, mask limit,
               chunk_range range, probe_rows p, scores_view scores, Scorer scorer,
               collective::logit_scale scale) {
  using tile_type = probe_tile<T, D>;
  constexpr int tiles = tile_type::tiles;
  extern __shared__ uint4 probe_bytes[];
  __shared__ probe_columns<tile_type::staged> columns[tile_type::stages];
  T* const stages = reinterpret_cast<T*>(probe_bytes);
  int const steps = ceil_div(scores.keys, tile_type::rows);
  int const slot = static_cast<int>(blockIdx.x) / range.count / steps;
  int const b = slot / shape.kv_heads, g = slot % shape.kv_heads;
  int const unit = b * range.count + static_cast<int>(blockIdx.x) % range.count;
  int const list = unit * shape.kv_heads + g, group = p.group;
  sequence_extent const extent = extent_of(shape, in, b);
  int const begin = static_cast<int>(blockIdx.x) / range.count % steps * tile_type::rows;
  int const end = smaller(begin + tile_type::rows, extent.kv_tokens);
  int const pairs = p.counts[unit] * group, count = ceil_div(pairs, tile_type::staged);
  int2 const* const places = p.places_of(unit);
  T const* const q_heads = q.at(b, g * group);
  bool const q_vectors = collective::has_vector_rows(q), full = limit == mask::full;
  int const lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  auto const window = [&](int pair) {
    return near.window_of(extent.position(places[pair].x), extent.kv_tokens, limit);
  };
  auto const view_of_stage = [&](int n) {
    return view_of(begin, end, window(n * tile_type::staged),
                   window(smaller((n + 1) * tile_type::staged, pairs) - 1), near.sinks, full);
  };
  // The stages in turn, those that no key sees left out; `placed` counts the ones asked for.
  int next = 0, placed = 0;
  probe_view views[tile_type::stages] = {};  // of the latest ones asked for, the first the oldest
  int firsts[tile_type::stages] = {};        // their first pairs
  auto const stage = [&] {
    probe_view view = probe_view::none;
    while (next < count && (view = view_of_stage(next)) == probe_view::none) ++next;
    int const pair0 = next * tile_type::staged;
#pragma unroll
    for (int n = 0; n + 1 < tile_type::stages; ++n) {
      views[n] = views[n + 1];
      firsts[n] = firsts[n + 1];
    }
    views[tile_type::stages - 1] = view;
    firsts[tile_type::stages - 1] = pair0;
    if (view != probe_view::none) {
      int const buffer = placed % tile_type::stages;
      collective::stage_rows<T, D, tile_type::staged, probe_threads>(
          stages + buffer * tile_type::stage_elements, q_vectors, pairs - pair0, shape.dim,
          [&](int r) {
            int2 const place = places[pair0 + r];
            return q_heads + place.y * q.stride(1) + place.x * q.stride(2);
          },
          [&](int r) { return tells(p.lse_of(shape, b, g, places[pair0 + r])); });
      if (int const r = static_cast<int>(threadIdx.x); r < tile_type::staged) {
        bool const exists = pair0 + r < pairs;
        key_range const w = window(smaller(pair0 + r, pairs - 1));
        float const lse = exists ? p.lse_of(shape, b, g, places[pair0 + r]) : __builtin_huge_valf();
        columns[buffer].lse[r] = tells(lse) ? lse * collective::log2_e : __builtin_huge_valf();
        columns[buffer].left[r] = exists ? w.begin : 0;
        columns[buffer].right[r] = exists && full ? w.end : 0x7fffffff;
      }
      ++placed;
      ++next;
    }
    ptx::cp_async_commit();
  };

  float mass[2 * tiles] = {}, peak[2 * tiles] = {};
  int sees[2 * tiles] = {}, plain_pairs = 0;
  int const own = begin + warp * tile_type::warp_rows;
  if (begin < end) {
    stage();
    stage();
  }
  if (placed > 0) {
    tile_type tile;
    tile.hold(collective::has_vector_rows(k), end - own, shape.dim,
              [&](int r) { return k.at(b, g, own + r); });
    for (int n = 0; n < placed; ++n) {
      probe_view const view = views[tile_type::stages - 2];
      int const pair0 = firsts[tile_type::stages - 2];
      ptx::cp_async_wait<1>();
      __syncthreads();
      stage();
      auto const add = [&](auto plain) {
        auto const& column = columns[n % tile_type::stages];
        T const* const at = stages + n % tile_type::stages * tile_type::stage_elements;
#pragma unroll 1
        for (int n0 = 0; n0 < tile_type::staged; n0 += 16) {
          float d[tiles][2][4] = {};
          tile.multiply(at, n0, d);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            int const pair = n0 + 8 * (e / 2) + 2 * (lane % 4) + e % 2;
            float const lse_of_pair = column.lse[pair];
            int const left = column.left[pair], right = column.right[pair];
#pragma unroll
            for (int r = 0; r < 2 * tiles; ++r) {
              int const key = own + 8 * r + lane / 4;
              bool const far = plain.value || (key >= near.sinks && key < left) || key >= right;
              float const share =
                  ptx::ex2(d[r / 2][e / 2][2 * (r % 2) + e % 2] * scale.bits - lse_of_pair);
              mass[r] += far ? share : 0.f;
              peak[r] = fmaxf(peak[r], far ? share : 0.f);
              if (!plain.value) sees[r] += far ? 1 : 0;
            }
          }
        }
        if (plain.value) plain_pairs += smaller(tile_type::staged, pairs - pair0);
      };
      if (view == probe_view::plain) add(std::true_type{});
      else add(std::false_type{});
    }
  }
#pragma unroll
  for (int r = 0; r < 2 * tiles; ++r) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      mass[r] += __shfl_xor_sync(~0u, mass[r], step);
      peak[r] = fmaxf(peak[r], __shfl_xor_sync(~0u, peak[r], step));
      sees[r] += __shfl_xor_sync(~0u, sees[r], step);
    }
    int const key = own + 8 * r + lane / 4;
    if (lane % 4 != r || key >= scores.keys) continue;
    bool const exists = key < end;
    write_score(
        scores, scorer, list, key,
        {exists ? mass[r] : 0.f, exists ? peak[r] : 0.f, exists ? sees[r] + plain_pairs : 0});
  }
}

/// Scores of a scorer that looks at nothing, for a budget that does not either. Grid: lists * keys
/// / 128.
template <class Scorer>
__global__ void __launch_bounds__(128) score_by_position(scores_view scores, Scorer scorer) {
  int const parts = scores.keys / 128;
  int const list = static_cast<int>(blockIdx.x) / parts;
  int const key = static_cast<int>(blockIdx.x) % parts * 128 + static_cast<int>(threadIdx.x);
  std::int64_t const at = std::int64_t{list} * scores.keys + key;
  scores.mass[at] = 0.f;
  scores.score[at] = scorer.score({}, token{key, segment::visual, false});
  if (key == 0) scores.pairs[list] = 0;
}

}  // namespace omnisparse::kernel
