/// @file
/// The log-sum-exp of what a row does not see, estimated from block moments, and what follows.
#pragma once

#include <omnisparse/backend/cuda/collective/log_sum.cuh>
#include <omnisparse/backend/cuda/collective/row_stage.cuh>
#include <omnisparse/backend/cuda/kernel/moments.cuh>
#include <omnisparse/core/merge.hpp>

namespace omnisparse::kernel {

/// The share of `part` in part + other, log-masses in nats; 0 where the part is empty.
__device__ inline float mass_share(float part, float other) noexcept {
  return part == empty_lse<float>() ? 0.f : 1.f / (1.f + expf(other - part));
}

/// Is the row of a text segment, hence never lazy?
template <class Inputs>
__device__ inline bool is_text_row(Inputs const& in, int b, int position) noexcept {
  return position >= 0 && !in.segments.is_null() && in.segments(b, position) == segment::text;
}

/// What a selector makes of a far log-sum-exp: the class of any row.
template <class Selector>
struct far_decision {
  static constexpr bool decides_all = true;
  Selector selector;
  lse_view<float, device> seen;  ///< of the near fields

  __device__ row_class operator()(int b, int h, int i, int position, bool text,
                                  float far) const noexcept {
    float const near = seen(b, h, i);
    bool const keeps = selector.keeps({near, far, mass_share(far, near)}, {position, h});
    return keeps || text ? row_class::active : row_class::lazy;
  }
};

/// What a rescue makes of the log-sum-exp that the list left out: the class of an active row.
template <class Rescue>
struct coverage_decision {
  static constexpr bool decides_all = false;
  Rescue rescue;
  lse_view<float, device> seen;  ///< of near field and list

  __device__ row_class operator()(int b, int h, int i, int position, bool,
                                  float left_out) const noexcept {
    float const share = left_out == empty_lse<float>() ? 1.f : mass_share(seen(b, h, i), left_out);
    return rescue.rescues({share}, {position, h}) ? row_class::rescued : row_class::active;
  }
};

inline constexpr int far_threads = 128;
/// Columns of a tile: the pyramid of a context of 128K fits in one.
inline constexpr int far_columns = 40;
/// Blocks that are listed at a time.
inline constexpr int far_listed = 25 * far_columns;

/// Lists the columns that a row sees: first the two blocks that its window cuts, left and right, or
/// -1, then whole blocks, nearest first. Only entries [from, from + far_listed) are written.
struct far_lister {
  pyramid_layout const* layout;
  int* entries;
  int from;
  int count = 0;

  OMNISPARSE_HD constexpr void add(int block) noexcept {
    if (count >= from && count < from + far_listed) entries[count - from] = block;
    ++count;
  }
  OMNISPARSE_HD constexpr void operator()(int level, int index, key_range clip) noexcept {
    bool const cut = level == 0 && clip.size() < layout->block;
    if (!cut) add(layout->offsets[level] + index);
  }
};

/// Shared memory of a block of threads: some columns of moments.
template <class T, int D>
struct far_shared {
  using mean_type = collective::product_t<T>;
  static constexpr int stride = collective::stage_stride<mean_type, D>;
  mean_type mean[2][far_columns * stride];  ///< leading and trailing parts
  bfloat16 variance[far_columns * stride];
  float bias[far_columns];    ///< log2 of the keys that count, -inf for none
  float radius[far_columns];  ///< 0 unless the bound is asked for
  int entries[far_listed];
  int count;     ///< columns of the whole list
  float cut[2];  ///< keys that count in the two cut blocks
};

/// The columns of a tile, from the listed entries: all of it is written, zeros where there are
/// none.
template <class T, int D>
__device__ inline void load_columns(far_shared<T, D>& s, block_moments const& m, int list,
                                    int first, int listed, bool bound) noexcept {
  constexpr int chunks = D / 8;
  std::int64_t const base = m.at(list, 0, 0);
  for (int e = static_cast<int>(threadIdx.x); e < far_columns * chunks; e += far_threads) {
    int const column = e / chunks, at = e % chunks * 8;
    int const block = first + column < s.count ? s.entries[listed + column] : -1;
    uint4 part[3] = {};
    if (block >= 0) {
      auto const* const mean = m.mean_of<T, D>(base + block) + at;
      part[0] = *reinterpret_cast<uint4 const*>(mean);
      part[1] = *reinterpret_cast<uint4 const*>(mean + D);
      if (!bound) {
        part[2] = *reinterpret_cast<uint4 const*>(m.variance + (base + block) * D + at);
      }
    }
    int const to = column * s.stride + at;
    *reinterpret_cast<uint4*>(s.mean[0] + to) = part[0];
    *reinterpret_cast<uint4*>(s.mean[1] + to) = part[1];
    *reinterpret_cast<uint4*>(s.variance + to) = part[2];
  }
  if (int const column = static_cast<int>(threadIdx.x); column < far_columns) {
    int const block = first + column < s.count ? s.entries[listed + column] : -1;
    float const count = block >= 0 ? m.count[base + block] : 0.f;
    s.bias[column] = log2f(count);
    s.radius[column] = bound && block >= 0 ? m.radius[base + block] : 0.f;
    if (first + column < 2) s.cut[column] = count;
  }
}

/// The rows of one warp, as operands and as running sums. Row r of 16 M is one of a run of
/// (position, head) pairs, head fastest.
template <class T, int D>
struct far_rows {
  /// Tiles of 16 rows a warp: two share each load of a column where the registers hold them.
  static constexpr int tiles = sizeof(T) == 2 && D <= 128 ? 2 : 1;
  static constexpr int rows = 16 * tiles;
  collective::operand_t<T> q[tiles][2][D / 32];
  collective::log_sum sum[tiles][2];
  float norm[tiles][2];         ///< |q|, for the bound
  float cut_bias[tiles][2][2];  ///< log2 of the far keys of the two cut blocks, by row

  /// Adds the columns of a tile; `cuts` tells that its first two are the cut blocks.
  __device__ void add(far_shared<T, D> const& s, int columns, bool cuts, float scale, float weight,
                      bool bound) noexcept {
    int const lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
    for (int first = 0; first < columns; first += 8) {
      float on_mean[tiles][4] = {}, on_spread[tiles][4] = {};
#pragma unroll
      for (int step = 0; step < D / 32; ++step) {
        auto const* const at = s.mean[0] + (first + lane / 4) * s.stride + step * 32 + lane % 4 * 8;
        using P = typename far_shared<T, D>::mean_type;
        auto const lead = collective::load_octet<P>(at, true);
        auto const trail = collective::load_octet<P>(at + far_columns * s.stride, true);
        collective::octet<P, 2> mean;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          mean.part[0][n] = lead.part[0][n];
          mean.part[1][n] = trail.part[0][n];
        }
#pragma unroll
        for (int t = 0; t < tiles; ++t) {
          collective::multiply(on_mean[t], q[t][0][step], q[t][1][step], mean);
        }
        if (!bound) {
          auto const spread = collective::staged_octet<D>(s.variance, first + lane / 4, step);
#pragma unroll
          for (int t = 0; t < tiles; ++t) {
            collective::multiply(on_spread[t], collective::squares_of(q[t][0][step]),
                                 collective::squares_of(q[t][1][step]), spread);
          }
        }
      }
      int const column = first + 2 * (lane % 4);
      float2 const bias = *reinterpret_cast<float2 const*>(s.bias + column);
      float2 const radius = *reinterpret_cast<float2 const*>(s.radius + column);
      bool const cut = cuts && column == 0;
#pragma unroll
      for (int t = 0; t < tiles; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float const more = bound ? norm[t][half] * scale : 0.f;
          float const left = cut ? cut_bias[t][half][0] : bias.x;
          float const right = cut ? cut_bias[t][half][1] : bias.y;
          float const x[2] = {on_mean[t][2 * half] * scale + on_spread[t][2 * half] * weight +
                                  more * radius.x + left,
                              on_mean[t][2 * half + 1] * scale +
                                  on_spread[t][2 * half + 1] * weight + more * radius.y + right};
          sum[t][half].add(x);
        }
      }
    }
  }
};

/// Classes of the rows of some lists by what lies beyond what they see. Each block of threads takes
/// up to `span` positions that begin where a window begins a block, so that usually all its rows
/// share their whole blocks. Grid: lists * parts, parts = ceil(chunk_rows / span) + 1.
template <class T, int D, class Decide, class Inputs>
__global__ void __launch_bounds__(far_threads)
    decide_by_far(attention_shape shape, Inputs const __grid_constant__ in,
                  tensor_view<T const, device> const __grid_constant__ q,
                  moment_source const __grid_constant__ from,
                  block_moments const __grid_constant__ m, far_estimate estimate, int span,
                  int parts, Decide const __grid_constant__ decide) {
  extern __shared__ uint4 memory[];
  auto& s = *reinterpret_cast<far_shared<T, D>*>(memory);
  using rows_of = far_rows<T, D>;
  int const list = static_cast<int>(blockIdx.x) / parts,
            part = static_cast<int>(blockIdx.x) % parts;
  int const b = from.range.batch_of(list, shape.kv_heads), group = shape.group();
  int const c = from.range.chunk_of(list, shape.kv_heads), g = list % shape.kv_heads;
  sequence_extent const extent = extent_of(shape, in, b);
  near_field const near = from.near;
  int const size = m.layout.block, kv_tokens = extent.kv_tokens;
  auto const window = [&](int i) {
    return near.window_of(extent.position(i), kv_tokens, from.limit);
  };
  // The rows of this part: those whose windows begin in the n-th span of keys of the chunk.
  std::int64_t const chunk_begin = std::int64_t{c} * from.plan.chunk_rows;
  std::int64_t const chunk_end =
      smaller<std::int64_t>(shape.q_tokens, chunk_begin + from.plan.chunk_rows);
  std::int64_t const origin =
      std::int64_t{extent.kv_tokens} - extent.q_tokens - near.window + 1;  // pos(0) - window + 1
  std::int64_t const start = origin + chunk_begin;
  std::int64_t const lead = start - (start % span + span) % span;
  auto const row_at = [&](int n) {
    return static_cast<int>(
        clamped<std::int64_t>(lead + std::int64_t{n} * span - origin, chunk_begin, chunk_end));
  };
  int const begin = row_at(part), end = row_at(part + 1);
  int const exist = clamped(extent.q_tokens, begin, end);
  if constexpr (Decide::decides_all) {
    for (int n = exist * group + static_cast<int>(threadIdx.x); n < end * group; n += far_threads) {
      from.plan.rows_at(b, g * group + n % group)[n / group] = row_class::lazy;
    }
  } else {
    bool any = false;
    for (int n = begin * group + static_cast<int>(threadIdx.x); n < exist * group;
         n += far_threads) {
      any |= from.plan.rows_at(b, g * group + n % group)[n / group] == row_class::active;
    }
    if (__syncthreads_or(any) == 0) return;
  }
  bool const vectors = collective::has_vector_rows(q);
  bool const bound = estimate.by == far_estimate::kind::upper_bound;
  float const scale = collective::log2_scale<D>;
  float const weight = estimate.variance_weight * collective::log2_e / (2.f * D);
  int const lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int first = begin, last; first < exist; first = last) {
    key_range const seen = window(first);
    int const left = seen.begin / size, right = ceil_div(seen.end, size) - 1;
    int beyond = exist;  // the run of rows that share their whole blocks ends before row `beyond`
    for (last = first + 1; last < beyond;) {
      int const middle = last + (beyond - last) / 2;
      key_range const w = window(middle);
      bool const shares = w.begin / size == left &&
                          (from.limit == mask::causal || ceil_div(w.end, size) - 1 == right);
      if (shares) last = middle + 1;
      else beyond = middle;
    }
    int const pairs = (last - first) * group;
    int count = 0;
    for (int r0 = 0; r0 < pairs; r0 += far_threads / 32 * rows_of::rows) {
      rows_of rows;
      int const own = r0 + warp * rows_of::rows + lane / 4;  // and every eighth after it
#pragma unroll
      for (int n = 0; n < 2 * rows_of::tiles; ++n) {
        int const pair = smaller(own + 8 * n, pairs - 1);
        int const i = first + pair / group, h = g * group + pair % group;
        T const* const row = q.at(b, h, i) + lane % 4 * 8;
#pragma unroll
        for (int step = 0; step < D / 32; ++step) {
          rows.q[n / 2][n % 2][step] = collective::load_octet(row + step * 32, vectors);
        }
        key_range const w = window(i);
        int const clips[2] = {w.begin > near.sinks ? w.begin - left * size : 0,
                              from.limit == mask::full && w.end < kv_tokens
                                  ? smaller((right + 1) * size, kv_tokens) - w.end
                                  : 0};
        rows.cut_bias[n / 2][n % 2][0] = static_cast<float>(clips[0]);
        rows.cut_bias[n / 2][n % 2][1] = static_cast<float>(clips[1]);
      }
      for (int tile = 0; tile == 0 || tile * far_columns < count; ++tile) {
        int const listed = tile * far_columns % far_listed;
        if (r0 == 0 || count > far_columns) {
          __syncthreads();
          if (threadIdx.x == 0 && listed == 0 && (r0 == 0 || count > far_listed)) {
            far_lister lister{&m.layout, s.entries, tile * far_columns};
            bool const has_left = left < m.layout.blocks(0);
            bool const has_right =
                from.limit == mask::full && right >= 0 && right < m.layout.blocks(0);
            lister.add(has_left ? left : -1);
            lister.add(has_right ? right : -1);
            detail::for_each_far_block(window(last - 1), near.sinks, kv_tokens, estimate,
                                       from.limit, lister);
            s.count = lister.count;
          }
          __syncthreads();
          count = s.count;
          load_columns(s, m, list, tile * far_columns, listed, bound);
          __syncthreads();
        }
        if (tile == 0) {
#pragma unroll
          for (int n = 0; n < 2 * rows_of::tiles; ++n) {
            float norm = 0.f;
#pragma unroll
            for (int side = 0; side < 2; ++side) {
              float& bias = rows.cut_bias[n / 2][n % 2][side];
              bias = log2f(fminf(bias, s.cut[side]));
            }
            if (bound) {
#pragma unroll
              for (int step = 0; step < D / 32; ++step) {
                norm += collective::square_sum(rows.q[n / 2][n % 2][step]);
              }
              norm += __shfl_xor_sync(~0u, norm, 1);
              norm += __shfl_xor_sync(~0u, norm, 2);
            }
            rows.norm[n / 2][n % 2] = sqrtf(norm);
          }
        }
        rows.add(s, smaller(far_columns, count - tile * far_columns), tile == 0, scale, weight,
                 bound);
      }
      // Lane l % 4 of the four that share 2 * tiles rows decides for one of them.
#pragma unroll
      for (int n = 0; n < 2 * rows_of::tiles; ++n) {
        rows.sum[n / 2][n % 2].merge_quad();
        int const pair = own + 8 * n;
        if (lane % 4 != n || pair >= pairs) continue;
        int const i = first + pair / group, h = g * group + pair % group;
        row_class& kind = from.plan.rows_at(b, h)[i];
        if (!Decide::decides_all && kind != row_class::active) continue;
        int const position = extent.position(i);
        kind = decide(b, h, i, position, is_text_row(in, b, position),
                      rows.sum[n / 2][n % 2].value() * collective::ln_2);
      }
    }
  }
}

}  // namespace omnisparse::kernel
