/// @file
/// Row classes by the contrast of the first keys with the pooled others, or by position alone.
#pragma once

#include <omnisparse/backend/cuda/kernel/far_mass.cuh>

namespace omnisparse::kernel {

/// Running sums of the keys of each (batch, KV head), in double, which the sums of any context
/// survive: [batch, kv_heads, blocks + 1, D], entry n is the sum of the keys before n * block.
struct key_sums {
  static constexpr int block = 64;
  double* sums = nullptr;
  int blocks = 0;

  static key_sums take(detail::arena& arena, attention_shape const& shape) noexcept {
    key_sums s;
    s.blocks = ceil_div(shape.kv_tokens, block);
    s.sums = arena.take<double>(
        static_cast<std::size_t>(shape.batch) * static_cast<std::size_t>(shape.kv_heads) *
        static_cast<std::size_t>(s.blocks + 1) * static_cast<std::size_t>(shape.dim));
    return s;
  }
  /// Entry `n` of slot b * kv_heads + g.
  template <int D>
  __device__ double* at(int slot, int n) const noexcept {
    return sums + (std::int64_t{slot} * (blocks + 1) + n) * D;
  }
};

inline constexpr int sum_threads = 256;

/// Sums each block of keys, a warp a block, into the entry after it; entry 0 is zero. Keys beyond a
/// sequence are not read. Grid: slots * ceil((blocks + 1) / 8).
template <class T, int D, class Inputs>
__global__ void __launch_bounds__(sum_threads)
    sum_blocks(attention_shape shape, Inputs const __grid_constant__ in,
               tensor_view<T const, device> const __grid_constant__ k, key_sums s) {
  constexpr int own = D / 32, warps = sum_threads / 32;
  int const parts = ceil_div(s.blocks + 1, warps);
  int const slot = static_cast<int>(blockIdx.x) / parts;
  int const entry =
      static_cast<int>(blockIdx.x) % parts * warps + static_cast<int>(threadIdx.x) / 32;
  if (entry > s.blocks) return;
  int const b = slot / shape.kv_heads, g = slot % shape.kv_heads;
  int const lane = static_cast<int>(threadIdx.x) % 32;
  int const begin = (entry - 1) * s.block;
  block_reader<T, D> const reader{k.at(b, g) + lane * own,
                                  k.stride(2),
                                  collective::has_vector_rows(k),
                                  {0, extent_of(shape, in, b).kv_tokens, nullptr, 0}};
  double sum[own] = {};
  if (entry > 0) {
    reader.for_each(
        begin, begin + s.block,
        [&](float const(&x)[own]) {
#pragma unroll
          for (int d = 0; d < own; ++d) sum[d] += static_cast<double>(x[d]);
        },
        [] {});
  }
#pragma unroll
  for (int d = 0; d < own; ++d) s.at<D>(slot, entry)[lane * own + d] = sum[d];
}

/// Turns sums into running sums: each group of D threads adds up a stretch of entries, then adds
/// what is before it. Grid: slots.
template <int D>
__global__ void __launch_bounds__(1024) scan_sums(key_sums s) {
  constexpr int groups = 1024 / D;
  __shared__ double totals[groups][D];
  int const channel = static_cast<int>(threadIdx.x) % D, group = static_cast<int>(threadIdx.x) / D;
  int const each = ceil_div(s.blocks + 1, groups), first = group * each;
  int const last = smaller(s.blocks + 1, first + each);
  double sum = 0;
#pragma unroll 8
  for (int n = first; n < last; ++n) sum += s.at<D>(blockIdx.x, n)[channel];
  totals[group][channel] = sum;
  __syncthreads();
  sum = 0;
  for (int n = 0; n < group; ++n) sum += totals[n][channel];
#pragma unroll 8
  for (int n = first; n < last; ++n) {
    double& at = s.at<D>(blockIdx.x, n)[channel];
    sum += at;
    at = sum;
  }
}

inline constexpr int contrast_threads = 256;

/// Rows of one head that a block of threads classifies: few where each needs means of its own.
OMNISPARSE_HD constexpr int contrast_rows(pool_range range) noexcept {
  return range == pool_range::past ? 32 : 256;
}

/// Classes by the shares of the two pooled keys. A row's means are those at its position, or, for
/// the whole call, those at the end: one pair for all rows. Grid: slots * ceil(q_tokens / rows),
/// rows = contrast_rows(range).
template <class T, int D, class Selector, class Inputs>
__global__ void __launch_bounds__(contrast_threads)
    classify_by_contrast(attention_shape shape, Inputs const __grid_constant__ in,
                         tensor_view<T const, device> const __grid_constant__ q,
                         tensor_view<T const, device> const __grid_constant__ k,
                         plan_view<device> const __grid_constant__ plan, key_sums s,
                         Selector selector) {
  extern __shared__ float means[];  // [rows, 2, D], sink and pool
  int const rows = contrast_rows(detail::range_of(selector));
  int const parts = ceil_div(shape.q_tokens, rows);
  int const slot = static_cast<int>(blockIdx.x) / parts;
  int const begin = static_cast<int>(blockIdx.x) % parts * rows;
  int const b = slot / shape.kv_heads, g = slot % shape.kv_heads, group = shape.group();
  sequence_extent const extent = extent_of(shape, in, b);
  int const end = smaller(begin + rows, shape.q_tokens);
  int const exist = clamped(extent.q_tokens, begin, end);
  int const first = detail::first_of(selector);
  bool const past = detail::range_of(selector) == pool_range::past;
  auto const pool_end = [&](int i) {
    return past ? clamped(extent.position(i) + 1, 0, extent.kv_tokens) : extent.kv_tokens;
  };

  // Channel d of the running sum, walked from the block before the first row to each row's end.
  if (int const d = static_cast<int>(threadIdx.x); d < D && begin < exist) {
    auto const sum_before = [&](int key) {
      double sum = s.at<D>(slot, key / s.block)[d];
#pragma unroll 8
      for (int j = key / s.block * s.block; j < key; ++j) {
        sum += static_cast<double>(static_cast<float>(*k.at(b, g, j, d)));
      }
      return sum;
    };
    double const sink = sum_before(smaller(first, extent.kv_tokens));
    int at = pool_end(begin);
    double sum = sum_before(at);
    for (int n = 0; n < (past ? exist - begin : 1); ++n) {
      for (int const to = pool_end(begin + n); at < to; ++at) {
        sum += static_cast<double>(static_cast<float>(*k.at(b, g, at, d)));
      }
      int const sinks = smaller(first, at), pooled = at - sinks;
      double const head = at < first ? sum : sink;
      means[(2 * n) * D + d] = static_cast<float>(head / larger(1, sinks));
      means[(2 * n + 1) * D + d] =
          pooled > 0 ? static_cast<float>((sum - sink) / larger(1, pooled)) : 0.f;
    }
  }
  __syncthreads();

  constexpr int lanes = D / 8, across = contrast_threads / lanes;  // eight channels a lane
  int const lane = static_cast<int>(threadIdx.x) % lanes;
  bool const vectors = collective::has_vector_rows(q);
  int const pairs = (end - begin) * group;
  for (int base = 0; base < pairs; base += across) {
    int const pair = base + static_cast<int>(threadIdx.x) / lanes;
    int const row = smaller(pair, pairs - 1) / group, i = begin + row;
    int const h = g * group + smaller(pair, pairs - 1) % group;
    float logit[2] = {};
    if (i < exist) {
      float x[8];
      collective::load_run(q.at(b, h, i) + lane * 8, vectors, x);
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        float const* const mean = means + (2 * (past ? row : 0) + side) * D + lane * 8;
#pragma unroll
        for (int d = 0; d < 8; ++d) logit[side] += x[d] * mean[d];
      }
    }
#pragma unroll
    for (int step = 1; step < lanes; step *= 2) {
      logit[0] += __shfl_xor_sync(~0u, logit[0], step);
      logit[1] += __shfl_xor_sync(~0u, logit[1], step);
    }
    if (lane != 0 || pair >= pairs) continue;
    row_class kind = row_class::lazy;
    if (i < exist) {
      float const sink = logit[0] * collective::inverse_root<D>;
      float const mean = logit[1] * collective::inverse_root<D>;
      float const share = pool_end(i) > first ? 1.f / (1.f + expf(sink - mean)) : 0.f;
      int const position = extent.position(i);
      if (selector.keeps({sink, mean, share}, {position, h}) || is_text_row(in, b, position)) {
        kind = row_class::active;
      }
    }
    plan.rows_at(b, h)[i] = kind;
  }
}

/// Classes by position and head alone. Grid: ceil(rows / 256).
template <class Selector, class Inputs>
__global__ void __launch_bounds__(256)
    classify_by_position(attention_shape shape, Inputs const __grid_constant__ in,
                         plan_view<device> const __grid_constant__ plan, Selector selector) {
  std::int64_t const n = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (n >= plan.row_count()) return;
  int const i = static_cast<int>(n % shape.q_tokens);
  int const h = static_cast<int>(n / shape.q_tokens % shape.q_heads);
  int const b = static_cast<int>(n / shape.q_tokens / shape.q_heads);
  sequence_extent const extent = extent_of(shape, in, b);
  int const position = extent.position(i);
  bool const keeps =
      i < extent.q_tokens && (selector.keeps({}, {position, h}) || is_text_row(in, b, position));
  plan.rows[n] = keeps ? row_class::active : row_class::lazy;
}

/// Rescue by position and head alone, of active rows. Grid: ceil(rows / 256).
template <class Rescue, class Inputs>
__global__ void __launch_bounds__(256)
    rescue_by_position(attention_shape shape, Inputs const __grid_constant__ in,
                       plan_view<device> const __grid_constant__ plan, Rescue rescue) {
  std::int64_t const n = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (n >= plan.row_count() || plan.rows[n] != row_class::active) return;
  int const i = static_cast<int>(n % shape.q_tokens);
  int const h = static_cast<int>(n / shape.q_tokens % shape.q_heads);
  int const b = static_cast<int>(n / shape.q_tokens / shape.q_heads);
  if (rescue.rescues({}, {extent_of(shape, in, b).position(i), h})) {
    plan.rows[n] = row_class::rescued;
  }
}

}  // namespace omnisparse::kernel
