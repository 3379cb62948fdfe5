/// @file
/// Block moments of the keys: count, mean, variance or radius of every block of a pyramid.
#pragma once

#include <omnisparse/backend/cuda/chunk_range.cuh>
#include <omnisparse/backend/cuda/collective/octet.cuh>
#include <omnisparse/backend/cuda/tuning/head_dim.hpp>
#include <omnisparse/core/call.hpp>
#include <omnisparse/detail/far_blocks.hpp>
#include <omnisparse/plan/plan.hpp>

namespace omnisparse::kernel {

/// Where the blocks of each level stand. The layout follows from the shape alone; a sequence that
/// is shorter has blocks without keys at the end of each level.
struct pyramid_layout {
  static constexpr int most_levels = 17;
  int block = 1;  ///< keys in a block of the lowest level
  int levels = 1;
  int offsets[most_levels + 1] = {};  ///< first block of each level, and of all at the end

  static pyramid_layout of(int kv_tokens, int block) noexcept {
    pyramid_layout p;
    p.block = block;
    p.levels = detail::pyramid_levels(kv_tokens, block);
    for (int level = 0, blocks = ceil_div(kv_tokens, block); level < p.levels; ++level) {
      p.offsets[level + 1] = p.offsets[level] + blocks;
      blocks = ceil_div(blocks, detail::pyramid_fan);
    }
    return p;
  }
  OMNISPARSE_HD constexpr int blocks(int level) const noexcept {
    return offsets[level + 1] - offsets[level];
  }
  OMNISPARSE_HD constexpr int total() const noexcept { return offsets[levels]; }
};

/// The moments of some lists. Means in two 16-bit parts, so that 16 bits and more of them take part
/// in a product; their type, product_t<T>, follows from the rows that they are made for. D is that
/// of the kernels; channels beyond the heads' are zeros.
struct block_moments {
  pyramid_layout layout;
  float* count = nullptr;   ///< [lists, blocks], keys that count
  float* radius = nullptr;  ///< [lists, blocks], no key is farther off the mean; for the bound
  std::uint16_t* mean = nullptr;  ///< [lists, blocks, 2, D], leading and trailing part
  bfloat16* spread = nullptr;     ///< [lists, blocks, D], variance times `weight`, for the estimate
  float weight = 0.f;             ///< what makes q^2 . spread an addend of q . mean

  static block_moments take(detail::arena& arena, pyramid_layout const& layout, int lists,
                            int dim) noexcept {
    auto const n = static_cast<std::size_t>(lists) * static_cast<std::size_t>(layout.total());
    auto const d = static_cast<std::size_t>(tuning::kernel_dim(dim));
    block_moments m;
    m.layout = layout;
    m.count = arena.take<float>(n);
    m.radius = arena.take<float>(n);
    m.mean = arena.take<std::uint16_t>(n * 2 * d);
    m.spread = arena.take<bfloat16>(n * d);
    return m;
  }
  static constexpr std::int64_t bytes(pyramid_layout const& layout, int dim) noexcept {
    return std::int64_t{layout.total()} * (8 + 6 * tuning::kernel_dim(dim));  ///< of one list
  }
  OMNISPARSE_HD constexpr std::int64_t at(int list, int level, int index) const noexcept {
    return std::int64_t{list} * layout.total() + layout.offsets[level] + index;
  }
  /// The two parts of the mean of block `at`, [2, D].
  template <class T, int D>
  __device__ collective::product_t<T>* mean_of(std::int64_t at) const noexcept {
    return reinterpret_cast<collective::product_t<T>*>(mean) + at * 2 * D;
  }
};

/// Which lists are measured, and what of the keys: the lists of a range of chunks of `plan`. Where
/// `plan.kept` is null every key beyond the sinks counts, else those that the list left out.
struct moment_source {
  plan_view<device> plan = {};
  chunk_range range = {};
  near_field near = {};
  mask limit = mask::causal;
};

/// The keys that enter the moments of one list: [sinks, tokens) without the listed ones.
struct moment_keys {
  int sinks, tokens;
  int const* list;
  int size;

  __device__ static moment_keys of(moment_source const& from, sequence_extent extent, int b, int c,
                                   int g, int block) noexcept {
    int const tokens = extent.kv_tokens;
    if (from.plan.kept == nullptr) return {from.near.sinks, tokens, nullptr, 0};
    // Under a causal mask nothing behind the block of the chunk's last row matters.
    std::int64_t const rows =
        smaller<std::int64_t>(extent.q_tokens, std::int64_t{c + 1} * from.plan.chunk_rows);
    int const end = larger(0, extent.position(static_cast<int>(rows) - 1) + 1);
    bool const cut = from.limit == mask::causal && end < tokens - block;
    return {from.near.sinks, cut ? round_up(end, block) : tokens, from.plan.kept_at(b, c, g),
            clamped(from.plan.kept_counts[from.plan.list(b, c, g)], 0, from.plan.capacity)};
  }

  /// The first listed key that is not below `key`; the same in every lane.
  __device__ int first_listed(int key) const noexcept {
    int low = 0;
    for (int n = size; n > 0;) {
      int const half = n / 2;
      bool const below = list[low + half] < key;
      low = below ? low + half + 1 : low;
      n = below ? n - half - 1 : half;
    }
    return low;
  }
  /// Bit n tells whether key `first` + n < `end` counts; `cursor` moves on over listed keys. Asked
  /// by a whole warp.
  __device__ unsigned counting(int first, int end, int& cursor) const noexcept {
    int const lane = static_cast<int>(threadIdx.x) % 32, key = first + lane;
    unsigned bits = __ballot_sync(~0u, key >= sinks && key < smaller(end, tokens));
    if (size == 0) return bits;
    int const entry = cursor + lane < size ? list[cursor + lane] - first : 32;
    unsigned const listed = __reduce_or_sync(~0u, entry < 32 ? 1u << entry : 0u);
    cursor += __popc(listed);
    return bits & ~listed;
  }
};

inline constexpr int moment_threads = 256;
inline constexpr int moment_warps = moment_threads / 32;

/// What one warp does with a block of keys: lane l owns channels [l D / 32, (l + 1) D / 32).
template <class T, int D>
struct block_reader {
  static constexpr int own = D / 32;
  static constexpr int held = 64 / own;  ///< keys in registers at a time
  T const* first;                        ///< the channels of key 0
  std::int64_t stride;                   ///< elements from key to key
  bool vectors;
  bool inside;  ///< are the lane's channels of the heads? Else they are zeros
  moment_keys keys;

  /// Calls use(x [held][own], bits) for stretches of keys of [begin, end): bit n tells that x[n] is
  /// a key that counts; the others are 0.
  template <class Use>
  __device__ void for_each(int begin, int end, Use const& use) const noexcept {
    int cursor = keys.size > 0 ? keys.first_listed(begin) : 0;
    for (int base = begin; base < smaller(end, keys.tokens); base += 32) {
      unsigned const counting = keys.counting(base, end, cursor);
#pragma unroll 1
      for (int part = 0; part < 32; part += held) {
        unsigned const bits = counting >> part & (~0u >> (32 - held));
        if (bits == 0) continue;
        float x[held][own] = {};
        auto const load = [&](auto whole) {
#pragma unroll
          for (int n = 0; n < held; ++n) {
            if (inside && (bits >> n & 1u) != 0) {
              collective::load_run(first + (base + part + n) * stride, whole.value, x[n]);
            }
          }
        };
        if (vectors) load(std::true_type{});
        else load(std::false_type{});
        use(x, bits);
      }
    }
  }
};

/// Lane's channels of the mean of a block, from its two parts.
template <class T, int D>
__device__ inline void load_mean(block_moments const& m, std::int64_t at,
                                 float (&mean)[D / 32]) noexcept {
  constexpr int own = D / 32;
  int const lane = static_cast<int>(threadIdx.x) % 32;
  float trailing[own];
  auto const* const parts = m.mean_of<T, D>(at) + lane * own;
  collective::load_run(parts, true, mean);
  collective::load_run(parts + D, true, trailing);
#pragma unroll
  for (int d = 0; d < own; ++d) mean[d] += trailing[d];
}

/// Writes lane's channels of a block, and its count.
template <class T, int D>
__device__ inline void store_block(block_moments const& m, std::int64_t at, float count,
                                   float const (&mean)[D / 32],
                                   float const (&spread)[D / 32]) noexcept {
  using P = collective::product_t<T>;
  constexpr int own = D / 32;
  int const lane = static_cast<int>(threadIdx.x) % 32;
  auto* const leading = reinterpret_cast<unsigned*>(m.mean_of<T, D>(at) + lane * own);
  auto* const trailing = leading + D / 2;
  auto* const spreads = reinterpret_cast<unsigned*>(m.spread + at * D + lane * own);
#pragma unroll
  for (int d = 0; d < own; d += 2) {
    unsigned low, high;
    collective::split<P>(mean[d], mean[d + 1], low, high);
    leading[d / 2] = low;
    trailing[d / 2] = high;
    spreads[d / 2] = collective::narrow<bfloat16>(spread[d], spread[d + 1]);
  }
  if (lane == 0) {
    m.count[at] = count;
    m.radius[at] = 0.f;
  }
}

/// Counts, means and variances of the lowest level, a warp a block: of a few keys at a time the
/// mean first, then the squared differences, pooled into those of the keys before. Grid: lists *
/// ceil(blocks / moment_warps), lists fastest, so that lists of one KV head read the same keys at
/// the same time.
template <class T, int D, class Inputs>
__global__ void __launch_bounds__(moment_threads)
    measure_blocks(attention_shape shape, Inputs const __grid_constant__ in,
                   tensor_view<T const, device> const __grid_constant__ k,
                   moment_source const __grid_constant__ from,
                   block_moments const __grid_constant__ m) {
  constexpr int own = D / 32;
  int const lists = from.range.lists(shape), list = static_cast<int>(blockIdx.x) % lists;
  int const index =
      static_cast<int>(blockIdx.x) / lists * moment_warps + static_cast<int>(threadIdx.x) / 32;
  if (index >= m.layout.blocks(0)) return;
  int const b = from.range.batch_of(list, shape.kv_heads);
  int const c = from.range.chunk_of(list, shape.kv_heads), g = list % shape.kv_heads;
  int const lane = static_cast<int>(threadIdx.x) % 32, block = m.layout.block;
  block_reader<T, D> const reader{k.at(b, g) + lane * own, k.stride(2),
                                  collective::has_vector_rows(k), lane * own < shape.dim,
                                  moment_keys::of(from, extent_of(shape, in, b), b, c, g, block)};
  int const begin = index * block, end = smaller(begin, reader.keys.tokens - block) + block;
  float mean[own] = {}, squares[own] = {}, count = 0.f;
  reader.for_each(begin, end, [&](auto const& x, unsigned bits) {
    float const more = static_cast<float>(__popc(bits)), total = count + more;
    float const each = 1.f / more, part = more / total, both = count * part;
#pragma unroll
    for (int d = 0; d < own; ++d) {
      float sum = 0.f, off = 0.f;
#pragma unroll
      for (int n = 0; n < reader.held; ++n) sum += x[n][d];
      sum *= each;
#pragma unroll
      for (int n = 0; n < reader.held; ++n) {
        if ((bits >> n & 1u) != 0) off += (x[n][d] - sum) * (x[n][d] - sum);
      }
      float const step = sum - mean[d];
      mean[d] += step * part;
      squares[d] += off + step * step * both;
    }
    count = total;
  });
  float const scale = count > 0.f ? m.weight / count : 0.f;
#pragma unroll
  for (int d = 0; d < own; ++d) squares[d] *= scale;
  store_block<T, D>(m, m.at(list, 0, index), count, mean, squares);
}

inline constexpr int pool_threads = 512;

/// Levels [from, to) from those below: a block of threads makes the part of them under one block of
/// level to - 1, a warp a block. All is read before any of it is looked at: a level takes the time
/// of one read. Grid: lists * blocks(to - 1), lists fastest.
template <class T, int D>
__global__ void __launch_bounds__(pool_threads)
    pool_blocks(block_moments const __grid_constant__ m, int lists, int from, int to) {
  constexpr int own = D / 32, fan = detail::pyramid_fan;
  int const list = static_cast<int>(blockIdx.x) % lists;
  int const top = static_cast<int>(blockIdx.x) / lists;
  int const lane = static_cast<int>(threadIdx.x) % 32;
  for (int level = from; level < to; ++level) {
    int const under = 1 << 2 * (to - 1 - level), first = top * under;
    int const last = smaller(m.layout.blocks(level), first + under);
    for (int index = first + static_cast<int>(threadIdx.x) / 32; index < last;
         index += pool_threads / 32) {
      int const part = index * fan, parts = smaller(fan, m.layout.blocks(level - 1) - part);
      float count[fan], means[fan][own], spreads[fan][own], total = 0.f;
#pragma unroll
      for (int n = 0; n < fan; ++n) {  // a part that does not exist is the last one, without keys
        std::int64_t const at = m.at(list, level - 1, part + smaller(n, parts - 1));
        count[n] = m.count[at];
        load_mean<T, D>(m, at, means[n]);
        collective::load_run(m.spread + at * D + lane * own, true, spreads[n]);
      }
#pragma unroll
      for (int n = 0; n < fan; ++n) {
        count[n] = n < parts ? count[n] : 0.f;
        total += count[n];
      }
      float mean[own] = {}, spread[own] = {};
#pragma unroll
      for (int n = 0; n < fan; ++n) {
        if (count[n] > 0.f) {
          float const share = count[n] / total;
#pragma unroll
          for (int d = 0; d < own; ++d) mean[d] += share * means[n][d];
        }
      }
#pragma unroll
      for (int n = 0; n < fan; ++n) {
        if (count[n] > 0.f) {
          float const share = count[n] / total;
#pragma unroll
          for (int d = 0; d < own; ++d) {
            float const off = means[n][d] - mean[d];
            spread[d] += share * (spreads[n][d] + m.weight * off * off);
          }
        }
      }
      store_block<T, D>(m, m.at(list, level, index), total, mean, spread);
    }
    __syncthreads();
  }
}

/// The radius of every block around its stored mean, a hair too large, so that a bound made of it
/// survives rounding: a warp reads the keys of a lowest block once for each block above them.
/// Radii are >= 0, so the largest is found by integer maxima of their bits, in any order.
template <class T, int D, class Inputs>
__global__ void __launch_bounds__(moment_threads)
    measure_radii(attention_shape shape, Inputs const __grid_constant__ in,
                  tensor_view<T const, device> const __grid_constant__ k,
                  moment_source const __grid_constant__ from,
                  block_moments const __grid_constant__ m) {
  constexpr int own = D / 32;
  // What products of split means and sums in float may lose, in parts of |q| |mean|.
  constexpr float slack = 3.2e-5f;
  int const lists = from.range.lists(shape), list = static_cast<int>(blockIdx.x) % lists;
  int const index =
      static_cast<int>(blockIdx.x) / lists * moment_warps + static_cast<int>(threadIdx.x) / 32;
  if (index >= m.layout.blocks(0)) return;
  int const b = from.range.batch_of(list, shape.kv_heads);
  int const c = from.range.chunk_of(list, shape.kv_heads), g = list % shape.kv_heads;
  int const lane = static_cast<int>(threadIdx.x) % 32, block = m.layout.block;
  block_reader<T, D> const reader{k.at(b, g) + lane * own, k.stride(2),
                                  collective::has_vector_rows(k), lane * own < shape.dim,
                                  moment_keys::of(from, extent_of(shape, in, b), b, c, g, block)};
  int const begin = index * block, end = smaller(begin, reader.keys.tokens - block) + block;
  auto const over_warp = [](float sum) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
  };
  for (int level = 0, above = index; level < m.layout.levels; ++level, above /= 4) {
    std::int64_t const at = m.at(list, level, above);
    float mean[own], most = 0.f, norm = 0.f;
    load_mean<T, D>(m, at, mean);
    reader.for_each(begin, end, [&](auto const& x, unsigned bits) {
#pragma unroll
      for (int n = 0; n < reader.held; ++n) {
        float sum = 0.f;
#pragma unroll
        for (int d = 0; d < own; ++d) sum += (x[n][d] - mean[d]) * (x[n][d] - mean[d]);
        sum = over_warp(sum);
        if ((bits >> n & 1u) != 0) most = fmaxf(most, sum);
      }
    });
#pragma unroll
    for (int d = 0; d < own; ++d) norm += mean[d] * mean[d];
    float const radius = 1.00001f * sqrtf(most) + slack * sqrtf(over_warp(norm));
    if (lane == 0 && m.count[m.at(list, 0, index)] > 0.f) {
      atomicMax(reinterpret_cast<int*>(m.radius + at), __float_as_int(radius));
    }
  }
}

}  // namespace omnisparse::kernel
