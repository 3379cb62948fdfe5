/// @file
/// Row classes by the contrast of the first keys with the pooled others, or by position alone.
#pragma once

#include <omnisparse/backend/cuda/collective/share_sums.cuh>
#include <omnisparse/backend/cuda/kernel/far_mass.cuh>

namespace omnisparse::kernel {

/// Running sums of the keys of each (batch, KV head), in double, which the sums of any context
/// survive: [batch, kv_heads, blocks + 1, D], entry n is the sum of the keys before n * block. D is
/// that of the kernels; channels beyond the heads' are zeros.
struct key_sums {
  static constexpr int block = 64;
  double* sums = nullptr;
  int blocks = 0;

  static key_sums take(detail::arena& arena, attention_shape const& shape) noexcept {
    key_sums s;
    s.blocks = ceil_div(shape.kv_tokens, block);
    s.sums = arena.take<double>(static_cast<std::size_t>(shape.batch) *
                                static_cast<std::size_t>(shape.kv_heads) *
                                static_cast<std::size_t>(s.blocks + 1) *
                                static_cast<std::size_t>(tuning::kernel_dim(shape.dim)));
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
                                  lane * own < shape.dim,
                                  {0, extent_of(shape, in, b).kv_tokens, nullptr, 0}};
  double sum[own] = {};
  if (entry > 0) {
    reader.for_each(begin, begin + s.block, [&](auto const& x, unsigned) {
#pragma unroll
      for (int n = 0; n < reader.held; ++n) {
#pragma unroll
        for (int d = 0; d < own; ++d) sum[d] += static_cast<double>(x[n][d]);
      }
    });
  }
#pragma unroll
  for (int d = 0; d < own; ++d) s.at<D>(slot, entry)[lane * own + d] = sum[d];
}

/// Turns sums into running sums, 32 channels at a time: each warp adds up a stretch of entries,
/// then adds what is before it. Grid: slots * D / 32.
template <int D>
__global__ void __launch_bounds__(1024) scan_sums(key_sums s) {
  __shared__ double totals[32][32];
  int const slot = static_cast<int>(blockIdx.x) / (D / 32),
            lane = static_cast<int>(threadIdx.x) % 32;
  int const channel = static_cast<int>(blockIdx.x) % (D / 32) * 32 + lane;
  int const warp = static_cast<int>(threadIdx.x) / 32, each = ceil_div(s.blocks + 1, 32);
  int const first = warp * each, last = smaller(s.blocks + 1, first + each);
  double sum = 0;
#pragma unroll 16
  for (int n = first; n < last; ++n) sum += s.at<D>(slot, n)[channel];
  totals[warp][lane] = sum;
  __syncthreads();
  sum = 0;
  for (int n = 0; n < warp; ++n) sum += totals[n][lane];
#pragma unroll 16
  for (int n = first; n < last; ++n) {
    double& at = s.at<D>(slot, n)[channel];
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
                         Selector selector, collective::logit_scale scale) {
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

  // Channel d of the running sums, walked by each group of D threads over a part of the rows, from
  // the block of keys before its first row. For the whole call there is only one sum.
  if (begin < exist) {
    constexpr int groups = contrast_threads / D;
    int const d = static_cast<int>(threadIdx.x) % D;
    int const each = past ? contrast_rows(pool_range::past) / groups : 1;
    int const from = static_cast<int>(threadIdx.x) / D * each;
    bool const inside = d < shape.dim;
    T const* const channel = k.at(b, g, 0, inside ? d : 0);
    double sum = 0;
    auto const walk = [&](int at, int to) {
#pragma unroll 16
      for (int j = at; inside && j < to; ++j) {
        sum += static_cast<double>(static_cast<float>(channel[j * k.stride(2)]));
      }
    };
    auto const sum_before = [&](int key) {
      sum = s.at<D>(slot, key / s.block)[d];
      walk(key / s.block * s.block, key);
      return sum;
    };
    double const sink = sum_before(smaller(first, extent.kv_tokens));
    int at = pool_end(begin + from);
    if (past) sum = sum_before(at);
    else sum = s.at<D>(slot, s.blocks)[d];
    for (int n = from; n < (past ? smaller(from + each, exist - begin) : 1); ++n) {
      walk(at, pool_end(begin + n));
      at = pool_end(begin + n);
      int const sinks = smaller(first, at), pooled = at - sinks;
      double const head = at < first ? sum : sink;
      means[(2 * n) * D + d] = static_cast<float>(head / larger(1, sinks));
      means[(2 * n + 1) * D + d] =
          pooled > 0 ? static_cast<float>((sum - sink) / larger(1, pooled)) : 0.f;
    }
  }
  __syncthreads();

  // Eight channels a lane, four rows of one head at a time. Sums over the lanes are shared out: a
  // lane ends with one logit of one row, its neighbour at distance 4 with the other.
  constexpr int lanes = D / 8, across = contrast_threads / lanes, together = 4;
  int const lane = static_cast<int>(threadIdx.x) % lanes;
  int const row0 = static_cast<int>(threadIdx.x) / lanes;
  bool const vectors = collective::has_vector_rows(q), inside = lane * 8 < shape.dim;
  auto const classify = [&](auto pooled_once) {
    float sink[8], pool[8];
    auto const load_means = [&](int row) {
#pragma unroll
      for (int d = 0; d < 8; ++d) {
        sink[d] = means[2 * row * D + lane * 8 + d];
        pool[d] = means[(2 * row + 1) * D + lane * 8 + d];
      }
    };
    if (pooled_once.value) load_means(0);
    for (int h = g * group; h < (g + 1) * group; ++h) {
      T const* const head = q.at(b, h, begin) + lane * 8;
      for (int base = row0; base - row0 < end - begin; base += across * together) {
        float x[together][8] = {}, logits[2 * together];
#pragma unroll
        for (int n = 0; n < together; ++n) {
          int const row = base + n * across;
          if (inside && row < exist - begin) {
            collective::load_run(head + row * q.stride(2), vectors, x[n]);
          }
        }
#pragma unroll
        for (int n = 0; n < together; ++n) {
          if (!pooled_once.value) load_means(clamped(base + n * across, 0, end - begin - 1));
          logits[2 * n] = logits[2 * n + 1] = 0.f;
#pragma unroll
          for (int d = 0; d < 8; ++d) {
            logits[2 * n] += x[n][d] * sink[d];
            logits[2 * n + 1] += x[n][d] * pool[d];
          }
        }
        float const mine = collective::share_sums<lanes>(logits);
        float const other = __shfl_xor_sync(~0u, mine, 4);
        int const row = base + (2 * (lane % 2) + lane / 2 % 2) * across, i = begin + row;
        if (lane >= 4 || i >= end) continue;
        row_class kind = row_class::lazy;
        if (i < exist) {
          int const position = extent.position(i);
          float const on_sink = mine * scale.nats;
          float const on_pool = other * scale.nats;
          float share = pool_end(i) > first ? 1.f / (1.f + expf(on_sink - on_pool)) : 0.f;
          if (is_nan(share)) share = 1.f;  // the row looks
          bool const keeps = selector.keeps({on_sink, on_pool, share}, {position, h});
          if (keeps || is_text_row(in, b, position)) kind = row_class::active;
        }
        plan.rows_at(b, h)[i] = kind;
      }
    }
  };
  if (past) classify(std::false_type{});
  else classify(std::true_type{});
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
