/// @file
/// The log-sum-exp of what a row does not see, estimated from block moments, and what follows.
#pragma once

#include <omnisparse/backend/cuda/collective/log_sum.cuh>
#include <omnisparse/backend/cuda/collective/row_stage.cuh>
#include <omnisparse/backend/cuda/kernel/moments.cuh>
#include <omnisparse/backend/cuda/ptx/opaque.cuh>
#include <omnisparse/core/merge.hpp>

namespace omnisparse::kernel {

/// The share of `part` in part + other, log-masses in nats; 0 where the part is empty, `unknown`
/// where they give none.
__device__ inline float mass_share(float part, float other, float unknown) noexcept {
  if (is_empty(part)) return 0.f;
  float const share = 1.f / (1.f + expf(other - part));
  return is_nan(share) ? unknown : share;
}

/// Is the row of a text segment, hence never lazy?
template <class Inputs>
__device__ inline bool is_text_row(Inputs const& in, int b, int position) noexcept {
  return position >= 0 && !in.segments.is_null() && in.segments(b, position) == segment::text;
}

/// What a selector makes of a far log-sum-exp: the class of any row. `seen` is that of a near
/// field.
template <class Selector>
struct far_decision {
  static constexpr bool decides_all = true;
  Selector selector;

  __device__ row_class operator()(query_row row, bool text, float near, float far) const noexcept {
    bool const keeps = selector.keeps({near, far, mass_share(far, near, 1.f)}, row);
    return keeps || text ? row_class::active : row_class::lazy;
  }
};

/// What a rescue makes of the log-sum-exp that the list left out: the class of an active row.
/// `seen` is that of near field and list. Sets `some`, where not null, if it rescues.
template <class Rescue>
struct coverage_decision {
  static constexpr bool decides_all = false;
  Rescue rescue;
  int* some = nullptr;

  __device__ row_class operator()(query_row row, bool, float seen, float left_out) const noexcept {
    float const share = is_empty(left_out) ? 1.f : mass_share(seen, left_out, 0.f);
    if (!rescue.rescues({share}, row)) return row_class::active;
    if (some != nullptr) *some = 1;
    return row_class::rescued;
  }
};

inline constexpr int far_threads = 128;
/// Columns of a tile, eight to a product: the pyramid of a context of 128K fits in one. At D 256
/// fewer, so that a block takes less than the 99 KB that some GPUs have.
template <int D>
inline constexpr int far_products = D == 256 ? 4 : 5;
template <int D>
inline constexpr int far_columns = 8 * far_products<D>;
/// A tile of fewer columns is multiplied by fewer products, a multiple of this many: each number is
/// code of its own.
inline constexpr int far_step = 2;

/// The columns of the rows that share their whole blocks: first the blocks that their windows cut,
/// left and, under a full mask, right, or -1, then whole blocks, nearest first.
struct far_list {
  pyramid_layout const* layout;
  far_estimate const* estimate;
  mask limit;
  key_range window;  ///< of the last row
  int sinks, kv_tokens;
  int cut[2];

  /// Column n, -1 if there is none, and how many there are.
  __device__ int2 column(int n) const noexcept {
    int const cuts = limit == mask::full ? 2 : 1;
    int block = n == 0 ? cut[0] : n < cuts ? cut[1] : -1, count = cuts;
    detail::for_each_far_run(window, sinks, kv_tokens, *estimate, limit,
                             [&](int level, int first, int blocks, int step) {
                               if (n >= count && n < count + blocks) {
                                 block = layout->offsets[level] + first + step * (n - count);
                               }
                               count += blocks;
                             });
    return {block, count};
  }
};

/// Some columns of moments in shared memory, [columns, D] each.
template <class T, int D>
struct far_shared {
  using mean_type = collective::product_t<T>;
  static constexpr int stride = collective::stage_stride<mean_type, D>;
  mean_type mean[2][far_columns<D> * stride];  ///< leading and trailing parts
  bfloat16 spread[far_columns<D> * stride];
  alignas(16) T ahead[2][4][far_threads][8];  ///< what threads will multiply: two steps of 4 rows
  alignas(8) float bias[far_columns<D>];  ///< log2 of the keys that count, in units of a product
  float radius[far_columns<D>];           ///< 0 unless the bound is asked for
  int blocks[far_columns<D>];             ///< which block a column is, or -1
  float cut[2];                           ///< keys that count in the two cut blocks
};

/// The block loads the columns from `first` on, as many as there are and a tile holds, and zeros up
/// to what is multiplied. Returns how many the list has. Ends with a barrier.
template <class T, int D>
__device__ inline int load_columns(far_shared<T, D>& s, block_moments const& m, int list,
                                   far_list const& columns, int first, bool bound,
                                   float bits) noexcept {
  constexpr int chunks = D / 8;
  int const thread = static_cast<int>(threadIdx.x);
  std::int64_t const base = m.at(list, 0, 0);
  auto const [block, count] = columns.column(first + thread);
  float const keys = thread < far_columns<D> && block >= 0 ? m.count[base + block] : 0.f;
  if (thread < far_columns<D>) s.blocks[thread] = block;
  __syncthreads();
  int const filled = smaller(far_columns<D>, round_up(count - first, 8 * far_step));
#pragma unroll 1
  for (int e = thread; e < filled * chunks; e += far_threads) {
    int const column = e / chunks, at = e % chunks * 8;
    int const from = s.blocks[column], bytes = from >= 0 ? 16 : 0;
    auto const* const mean = m.mean_of<T, D>(base + larger(from, 0)) + at;
    auto const* const spread = m.spread + (base + larger(from, 0)) * D + at;
    ptx::cp_async_16(s.mean[0] + column * s.stride + at, mean, bytes);
    ptx::cp_async_16(s.mean[1] + column * s.stride + at, mean + D, bytes);
    ptx::cp_async_16(s.spread + column * s.stride + at, spread, bound ? 0 : bytes);
  }
  ptx::cp_async_commit();
  if (thread < far_columns<D>) {
    s.bias[thread] = log2f(keys) / bits;
    s.radius[thread] = bound && block >= 0 ? m.radius[base + block] : 0.f;
    if (first + thread < 2) s.cut[thread] = keys;
  }
  ptx::cp_async_wait<0>();
  __syncthreads();
  return __shfl_sync(~0u, count, 0);
}

/// The rows that a warp multiplies, 32 at a time. Two steps of 32 elements are always on their way,
/// those of the next rows too, so that memory does not wait for products. Lane l reads of rows
/// 8 n + l / 4 what it multiplies and nobody else: no barrier orders that.
template <class T, int D>
struct far_rows {
  static constexpr int steps = D / 32;
  far_shared<T, D>& s;
  bool vectors;      ///< may rows be read 16 bytes at a time?
  int dim;           ///< elements of a row; zeros follow
  float bits;        ///< what makes logits of products, in log2 units
  T const* rows[4];  ///< lane's elements of those that are read next

  /// The row at q + `row` of the n-th of four lanes becomes row n of all four.
  __device__ void move(T const* q, std::int64_t row) noexcept {
    int const lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int n = 0; n < 4; ++n) rows[n] = q + __shfl_sync(~0u, row, (lane & ~3) + n);
  }
  __device__ T* place(int step, int n) const noexcept { return s.ahead[step % 2][n][threadIdx.x]; }
  __device__ void load(int step) const noexcept {
    constexpr int each = 16 / static_cast<int>(sizeof(T));
    bool const inside = step * 32 + static_cast<int>(ptx::opaque(threadIdx.x)) % 4 * 8 < dim;
    if (vectors) {
#pragma unroll
      for (int n = 0; n < 32; n += each) {
        ptx::cp_async_16_of_row(place(step, n / 8) + n % 8, rows[n / 8] + step * 32 + n % 8,
                                inside ? 16 : 0);
      }
    } else {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll 1
        for (int e = 0; e < 8; ++e) place(step, n)[e] = inside ? rows[n][step * 32 + e] : T{};
      }
    }
  }
  /// Adds the terms of a tile of columns to the sums of each row, by as many products as it takes.
  /// `cut` may correct the biases of the first eight columns; `next` moves to the rows that are
  /// read next, if there are any.
  template <int Products = far_step, class Cut, class Next>
  __device__ void add(int columns, bool bound, Cut const& cut, Next const& next,
                      collective::log_sum (&sums)[4]) noexcept {
    if constexpr (Products < far_products<D>) {
      constexpr int bigger = smaller(Products + far_step, far_products<D>);
      if (columns > 8 * Products) return add<bigger>(columns, bound, cut, next, sums);
    }
    using collective::multiply, collective::staged_octet;
    int const lane = static_cast<int>(threadIdx.x) % 32;
    float d[Products][2][4], squares[4] = {};  // d by eight columns, by 16 rows
    bool more = true;
#pragma unroll
    for (int p = 0; p < Products; ++p) {
      float2 const bias = *reinterpret_cast<float2 const*>(s.bias + 8 * p + 2 * (lane % 4));
#pragma unroll
      for (int e = 0; e < 8; ++e) d[p][e / 4][e % 4] = e % 2 == 0 ? bias.x : bias.y;
    }
    cut(d[0]);
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      ptx::cp_async_wait<1>();
      collective::operand_t<T> q[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) q[n] = collective::load_octet(place(step, n), true);
      if (step + 2 == steps) more = next();
      if (more) load((step + 2) % steps);
      ptx::cp_async_commit();
      if (bound) {
#pragma unroll
        for (int n = 0; n < 4; ++n) squares[n] += collective::square_sum(q[n]);
      }
      auto const low = collective::settled(collective::pair_rows(q[0], q[1]));
      auto const high = collective::settled(collective::pair_rows(q[2], q[3]));
      auto const low_squares = collective::squares_of(low);
      auto const high_squares = collective::squares_of(high);
#pragma unroll
      for (int p = 0; p < Products; ++p) {
        int const row = 8 * p + lane / 4;
        auto const leading = staged_octet<D>(s.mean[0], row, step);
        auto const trailing = staged_octet<D>(s.mean[1], row, step);
        collective::octet<collective::product_t<T>, 2> mean;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          mean.part[0][n] = leading.part[0][n];
          mean.part[1][n] = trailing.part[0][n];
        }
        multiply(d[p][0], low, mean);
        multiply(d[p][1], high, mean);
        auto const spread = staged_octet<D>(s.spread, row, step);
        multiply(d[p][0], low_squares, spread);
        multiply(d[p][1], high_squares, spread);
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      float x[2 * Products];
#pragma unroll
      for (int e = 0; e < 2 * Products; ++e) x[e] = d[e / 2][n / 2][2 * (n % 2) + e % 2];
      if (bound) {
        squares[n] += __shfl_xor_sync(~0u, squares[n], 1);
        squares[n] += __shfl_xor_sync(~0u, squares[n], 2);
        float const norm = sqrtf(squares[n]);
#pragma unroll
        for (int e = 0; e < 2 * Products; ++e) {
          x[e] += norm * s.radius[e / 2 * 8 + 2 * (lane % 4) + e % 2];
        }
      }
      sums[n].add(x, bits);
    }
  }
};

/// The rows of a part of a chunk: those whose windows begin in the n-th span of its keys, `span` a
/// power of two.
struct far_part {
  int begin, end;
  int exist;  ///< rows from here on do not exist

  __device__ static far_part of(attention_shape const& shape, moment_source const& from,
                                sequence_extent extent, int c, int n, int span) noexcept {
    std::int64_t const first = std::int64_t{c} * from.plan.chunk_rows;
    std::int64_t const last = smaller<std::int64_t>(shape.q_tokens, first + from.plan.chunk_rows);
    std::int64_t const origin =  // pos(0) - window + 1
        std::int64_t{extent.kv_tokens} - extent.q_tokens - from.near.window + 1;
    std::int64_t const lead = (origin + first) & -std::int64_t{span};
    auto const row_at = [&](int part) {
      return static_cast<int>(clamped(lead + std::int64_t{part} * span - origin, first, last));
    };
    far_part const rows{row_at(n), row_at(n + 1), 0};
    return {rows.begin, rows.end, clamped(extent.q_tokens, rows.begin, rows.end)};
  }
};

/// Classes of the rows of some lists by what lies beyond what they see, `seen` in nats. Each block
/// of threads takes up to `span` positions, a power of two, that begin where a window begins a
/// block, so that usually all its rows share their whole blocks. Grid: lists * parts, parts =
/// ceil(chunk_rows / span) + 1.
template <class T, int D, class Decide, class Inputs>
__global__ void __launch_bounds__(far_threads, std::is_same_v<T, float> ? 3 : 4)
    decide_by_far(attention_shape shape, Inputs const __grid_constant__ in,
                  tensor_view<T const, device> const __grid_constant__ q,
                  moment_source const __grid_constant__ from,
                  block_moments const __grid_constant__ m, far_estimate estimate, int span,
                  int parts, lse_view<T, device> const __grid_constant__ seen,
                  Decide const __grid_constant__ decide,
                  collective::logit_scale const __grid_constant__ scale) {
  extern __shared__ uint4 far_bytes[];
  auto& s = *reinterpret_cast<far_shared<T, D>*>(far_bytes);
  int const list = static_cast<int>(blockIdx.x) / parts,
            part = static_cast<int>(blockIdx.x) % parts;
  int const b = from.range.batch_of(list, shape.kv_heads), group = shape.group();
  int const c = from.range.chunk_of(list, shape.kv_heads), g = list % shape.kv_heads;
  sequence_extent const extent = extent_of(shape, in, b);
  near_field const near = from.near;
  bool const full = from.limit == mask::full;
  int const size = m.layout.block, kv_tokens = extent.kv_tokens;
  auto const window = [&](int i) {
    return near.window_of(extent.position(i), kv_tokens, from.limit);
  };
  auto const [begin, end, exist] = far_part::of(shape, from, extent, c, part, span);
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
  T const* const q_rows = q.at(b) + static_cast<int>(threadIdx.x) % 4 * 8;
  bool const bound = estimate.by == far_estimate::kind::upper_bound;
  int const lane = static_cast<int>(threadIdx.x) % 32,
            warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  for (int first = begin, last; first < exist; first = last) {
    key_range const w0 = window(first);
    int const left = w0.begin / size, right = ceil_div(w0.end, size) - 1;
    auto const shares = [&](int i) {  // its whole blocks with row `first`
      key_range const w = window(i);
      return w.begin / size == left && (!full || ceil_div(w.end, size) - 1 == right);
    };
    last = shares(exist - 1) ? exist : first + 1;
    for (int beyond = exist; last < beyond;) {
      int const middle = last + (beyond - last) / 2;
      if (shares(middle)) last = middle + 1;
      else beyond = middle;
    }
    int const positions = last - first, pairs = __shfl_sync(~0u, positions * group, 0);
    // Row 8 n + lane / 4 of the warp's 32 is held by four lanes; the n-th of them decides for it.
    auto const pair_of = [&](int r0) { return r0 + warp * 32 + 8 * (lane % 4) + lane / 4; };
    auto const head_and_row = [&](int pair) {
      auto const n = static_cast<unsigned>(smaller(pair, pairs - 1));
      auto const h = n / static_cast<unsigned>(positions);
      return int2{g * group + static_cast<int>(h),
                  first + static_cast<int>(n - h * static_cast<unsigned>(positions))};
    };
    far_rows<T, D> rows{s, collective::has_vector_rows(q), shape.dim, scale.bits, {}};
    auto const move = [&](int r0) {
      int2 const at = head_and_row(pair_of(r0));
      rows.move(q_rows, at.x * q.stride(1) + at.y * q.stride(2));
    };
    move(0);
    for (int step = 0; step < 2; ++step) {
      rows.load(step);
      ptx::cp_async_commit();
    }
    far_list const columns{&m.layout,
                           &estimate,
                           from.limit,
                           window(last - 1),
                           near.sinks,
                           kv_tokens,
                           {left < m.layout.blocks(0) ? left : -1,
                            right >= 0 && right < m.layout.blocks(0) ? right : -1}};
    int count = 0;
    for (int r0 = 0; r0 < pairs; r0 += far_threads) {
      int const mine = pair_of(r0);
      auto const [h, i] = head_and_row(mine);
      bool const asked =
          mine < pairs && (Decide::decides_all || from.plan.rows_at(b, h)[i] == row_class::active);
      float const my_seen = seen(b, h, i);
      collective::log_sum sums[4];
      for (int tile = 0; tile == 0 || tile * far_columns<D> < count; ++tile) {
        if (r0 == 0 || count > far_columns<D>) {
          __syncthreads();
          count = load_columns(s, m, list, columns, tile * far_columns<D>, bound, scale.bits);
        }
        if (r0 + warp * 32 >= pairs) continue;
        auto const cut = [&](float(&d)[2][4]) {
          if (tile > 0) return;
          key_range const w = window(i);
          int const clip_left = w.begin > near.sinks ? w.begin - left * size : 0;
          int const clip_right =
              full && w.end < kv_tokens ? smaller((right + 1) * size, kv_tokens) - w.end : 0;
          auto const bias = [&](int clip, float most) {
            return __log2f(fminf(static_cast<float>(clip), most)) / scale.bits;
          };
          float const cut_bias[2] = {bias(clip_left, s.cut[0]),
                                     full ? bias(clip_right, s.cut[1]) : s.bias[1]};
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            int const row = e / 4 * 2 + e / 2 % 2;
            float const own = __shfl_sync(~0u, cut_bias[e % 2], (lane & ~3) + row);
            if (lane % 4 == 0) d[e / 4][e % 4] = own;
          }
        };
        int const left_out = count - tile * far_columns<D>;
        auto const next = [&] {
          if (left_out > far_columns<D>) return true;
          move(r0 + far_threads);
          return r0 + far_threads + warp * 32 < pairs;
        };
        rows.add(left_out, bound, cut, next, sums);
      }
      float const far = collective::merge_quad(sums).value() * collective::ln_2;
      if (asked) {
        int const position = extent.position(i);
        from.plan.rows_at(b, h)[i] =
            decide({position, h}, is_text_row(in, b, position), my_seen, far);
      }
    }
  }
}

}  // namespace omnisparse::kernel
