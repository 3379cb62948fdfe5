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

/// What a selector makes of a far log-sum-exp: the class of any row. `seen` is that of a near
/// field.
template <class Selector>
struct far_decision {
  static constexpr bool decides_all = true;
  Selector selector;

  __device__ row_class operator()(query_row row, bool text, float near, float far) const noexcept {
    bool const keeps = selector.keeps({near, far, mass_share(far, near)}, row);
    return keeps || text ? row_class::active : row_class::lazy;
  }
};

/// What a rescue makes of the log-sum-exp that the list left out: the class of an active row.
/// `seen` is that of near field and list.
template <class Rescue>
struct coverage_decision {
  static constexpr bool decides_all = false;
  Rescue rescue;

  __device__ row_class operator()(query_row row, bool, float seen, float left_out) const noexcept {
    float const share = left_out == empty_lse<float>() ? 1.f : mass_share(seen, left_out);
    return rescue.rescues({share}, row) ? row_class::rescued : row_class::active;
  }
};

inline constexpr int far_threads = 128;
/// Columns of a tile, eight to a product: the pyramid of a context of 128K fits in one.
inline constexpr int far_products = 5;
inline constexpr int far_columns = 8 * far_products;
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

/// Some columns of moments in shared memory, [columns, D] each.
template <class T, int D>
struct far_shared {
  using mean_type = collective::product_t<T>;
  static constexpr int stride = collective::stage_stride<mean_type, D>;
  mean_type mean[2][far_columns * stride];  ///< leading and trailing parts
  bfloat16 spread[far_columns * stride];
  alignas(8) float bias[far_columns];  ///< log2 of the keys that count, in units of a product
  float radius[far_columns];           ///< 0 unless the bound is asked for
  int entries[far_listed];
  float norm[far_threads];  ///< |q| of each row, for the bound
  int count;                ///< columns of the whole list
  float cut[2];             ///< keys that count in the two cut blocks
};

/// The block loads the columns of a tile from the listed entries; zeros where there are none. Ends
/// with a barrier.
template <class T, int D>
__device__ inline void load_columns(far_shared<T, D>& s, block_moments const& m, int list,
                                    int first, int listed, bool bound) noexcept {
  constexpr int chunks = D / 8;
  std::int64_t const base = m.at(list, 0, 0);
#pragma unroll
  for (int n = 0; n < ceil_div(far_columns * chunks, far_threads); ++n) {
    int const e = n * far_threads + static_cast<int>(threadIdx.x);
    int const column = e / chunks, at = e % chunks * 8;
    if (column >= far_columns) break;
    int const block = first + column < s.count ? s.entries[listed + column] : -1;
    int const bytes = block >= 0 ? 16 : 0;
    auto const* const mean = m.mean_of<T, D>(base + larger(block, 0)) + at;
    auto const* const spread = m.spread + (base + larger(block, 0)) * D + at;
    ptx::cp_async_16(s.mean[0] + column * s.stride + at, mean, bytes);
    ptx::cp_async_16(s.mean[1] + column * s.stride + at, mean + D, bytes);
    ptx::cp_async_16(s.spread + column * s.stride + at, spread, bound ? 0 : bytes);
  }
  ptx::cp_async_commit();
  if (int const column = static_cast<int>(threadIdx.x); column < far_columns) {
    int const block = first + column < s.count ? s.entries[listed + column] : -1;
    float const count = block >= 0 ? m.count[base + block] : 0.f;
    s.bias[column] = log2f(count) / collective::log2_scale<D>;
    s.radius[column] = bound && block >= 0 ? m.radius[base + block] : 0.f;
    if (first + column < 2) s.cut[column] = count;
  }
  ptx::cp_async_wait<0>();
  __syncthreads();
}

/// The products of 32 rows of a warp with a tile of columns. The rows are read once a tile, two
/// steps ahead, and never kept. `Whole` tells that they are read 16 bytes at a time.
template <class T, int D>
struct far_rows {
  float d[far_products][2][4];           ///< by eight columns, by 16 rows
  collective::operand_t<T> ahead[2][4];  ///< the next two steps of rows 8 n + lane / 4

  template <class Whole>
  __device__ void load(T const* const (&rows)[4], int step, Whole) noexcept {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      ahead[step % 2][n] = collective::load_octet(rows[n] + step * 32, Whole::value);
    }
  }
  /// |q| of the rows, [32].
  template <class Whole>
  __device__ void measure(T const* const (&rows)[4], float* norm, Whole whole) noexcept {
    int const lane = static_cast<int>(threadIdx.x) % 32;
    float squares[4] = {};
#pragma unroll
    for (int step = 0; step < D / 32; ++step) {
      load(rows, step, whole);
#pragma unroll
      for (int n = 0; n < 4; ++n) squares[n] += collective::square_sum(ahead[step % 2][n]);
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      squares[n] += __shfl_xor_sync(~0u, squares[n], 1);
      squares[n] += __shfl_xor_sync(~0u, squares[n], 2);
      if (lane % 4 == 0) norm[8 * n + lane / 4] = sqrtf(squares[n]);
    }
    __syncwarp();
  }
  /// `d` starts as the columns' bias, the same for all rows.
  __device__ void begin(far_shared<T, D> const& s) noexcept {
    int const lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int p = 0; p < far_products; ++p) {
      float2 const bias = *reinterpret_cast<float2 const*>(s.bias + 8 * p + 2 * (lane % 4));
#pragma unroll
      for (int e = 0; e < 8; ++e) d[p][e / 4][e % 4] = e % 2 == 0 ? bias.x : bias.y;
    }
  }
  template <class Whole>
  __device__ void multiply(far_shared<T, D> const& s, T const* const (&rows)[4],
                           Whole whole) noexcept {
    int const lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int step = 0; step < D / 32; ++step) {
      auto const& q = ahead[step % 2];
      auto const low = collective::settled(collective::pair_rows(q[0], q[1]));
      auto const high = collective::settled(collective::pair_rows(q[2], q[3]));
      if (step + 2 < D / 32) load(rows, step + 2, whole);
      auto const low_squares = collective::squares_of(low);
      auto const high_squares = collective::squares_of(high);
#pragma unroll
      for (int p = 0; p < far_products; ++p) {
        int const row = 8 * p + lane / 4;
        auto const leading = collective::staged_octet<D>(s.mean[0], row, step);
        auto const trailing = collective::staged_octet<D>(s.mean[1], row, step);
        collective::octet<collective::product_t<T>, 2> mean;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          mean.part[0][n] = leading.part[0][n];
          mean.part[1][n] = trailing.part[0][n];
        }
        collective::multiply(d[p][0], low, mean);
        collective::multiply(d[p][1], high, mean);
        auto const spread = collective::staged_octet<D>(s.spread, row, step);
        collective::multiply(d[p][0], low_squares, spread);
        collective::multiply(d[p][1], high_squares, spread);
      }
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
__global__ void __launch_bounds__(far_threads, 4)
    decide_by_far(attention_shape shape, Inputs const __grid_constant__ in,
                  tensor_view<T const, device> const __grid_constant__ q,
                  moment_source const __grid_constant__ from,
                  block_moments const __grid_constant__ m, far_estimate estimate, int span,
                  int parts, lse_view<T, device> const __grid_constant__ seen,
                  Decide const __grid_constant__ decide) {
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
  bool const vectors = collective::has_vector_rows(q);
  T const* const q_rows = q.at(b) + static_cast<int>(threadIdx.x) % 4 * 8;
  bool const bound = estimate.by == far_estimate::kind::upper_bound;
  int const lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
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
    int const pairs = (last - first) * group;
    int count = 0;
    for (int r0 = 0; r0 < pairs; r0 += far_threads) {
      // Row 8 n + lane / 4 of the warp's 32 is held by four lanes; the n-th of them decides for it.
      int const mine = r0 + warp * 32 + 8 * (lane % 4) + lane / 4;
      auto const pair = static_cast<unsigned>(smaller(mine, pairs - 1));
      int const i = first + static_cast<int>(pair / static_cast<unsigned>(group));
      int const h = g * group + static_cast<int>(pair % static_cast<unsigned>(group));
      std::int64_t const my_row = h * q.stride(1) + i * q.stride(2);
      T const* rows[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        rows[n] = q_rows + __shfl_sync(~0u, my_row, (lane & ~3) + n);
      }
      float const my_seen = seen(b, h, i);
      row_class& kind = from.plan.rows_at(b, h)[i];
      bool const asked = mine < pairs && (Decide::decides_all || kind == row_class::active);
      bool const text = is_text_row(in, b, extent.position(i));
      collective::log_sum sums[4];
      for (int tile = 0; tile == 0 || tile * far_columns < count; ++tile) {
        far_rows<T, D> products;
        auto const begin_rows = [&](auto whole) {
          if (bound) products.measure(rows, s.norm + warp * 32, whole);
          products.load(rows, 0, whole);
          products.load(rows, 1, whole);
        };
        if (vectors) begin_rows(std::true_type{});
        else begin_rows(std::false_type{});
        if (int const listed = tile * far_columns % far_listed; r0 == 0 || count > far_columns) {
          __syncthreads();
          if (threadIdx.x == 0 && listed == 0 && (r0 == 0 || count > far_listed)) {
            far_lister lister{&m.layout, s.entries, tile * far_columns};
            lister.add(left < m.layout.blocks(0) ? left : -1);
            lister.add(full && right >= 0 && right < m.layout.blocks(0) ? right : -1);
            detail::for_each_far_block(window(last - 1), near.sinks, kv_tokens, estimate,
                                       from.limit, lister);
            s.count = lister.count;
          }
          __syncthreads();
          count = s.count;
          load_columns(s, m, list, tile * far_columns, listed, bound);
        }
        products.begin(s);
        if (tile == 0) {  // the far keys of the two cut blocks differ from row to row
          key_range const w = window(i);
          int const clip_left = w.begin > near.sinks ? w.begin - left * size : 0;
          int const clip_right =
              full && w.end < kv_tokens ? smaller((right + 1) * size, kv_tokens) - w.end : 0;
          auto const bias = [](int clip, float most) {
            return __log2f(fminf(static_cast<float>(clip), most)) / collective::log2_scale<D>;
          };
          float const cut_bias[2] = {bias(clip_left, s.cut[0]),
                                     full ? bias(clip_right, s.cut[1]) : s.bias[1]};
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            int const row = e / 4 * 2 + e / 2 % 2;
            float const cut = __shfl_sync(~0u, cut_bias[e % 2], (lane & ~3) + row);
            if (lane % 4 == 0) products.d[0][e / 4][e % 4] = cut;
          }
        }
        if (vectors) products.multiply(s, rows, std::true_type{});
        else products.multiply(s, rows, std::false_type{});
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          float x[2 * far_products];
#pragma unroll
          for (int e = 0; e < 2 * far_products; ++e) {
            x[e] = products.d[e / 2][n / 2][2 * (n % 2) + e % 2];
          }
          if (bound) {
            float const norm = s.norm[warp * 32 + 8 * n + lane / 4];
#pragma unroll
            for (int e = 0; e < 2 * far_products; ++e) {
              x[e] += norm * s.radius[e / 2 * 8 + 2 * (lane % 4) + e % 2];
            }
          }
          sums[n].add(x, collective::log2_scale<D>);
        }
      }
      float const far = collective::merge_quad(sums).value() * collective::ln_2;
      if (asked) kind = decide({extent.position(i), h}, text, my_seen, far);
    }
  }
}

}  // namespace omnisparse::kernel
