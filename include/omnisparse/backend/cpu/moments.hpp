/// @file
/// Block moments of the keys, and the log-sum-exp of what a row does not see estimated from them.
#pragma once

#include <omnisparse/backend/cpu/attend.hpp>
#include <omnisparse/detail/far_blocks.hpp>

#include <algorithm>
#include <cmath>

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

/// A pyramid of block moments over the keys of one (batch, KV head). Each block is a row that one
/// product with an extended query turns into its logit, log2 units:
/// estimate: mean [dim], variance [dim], log2 of the count; upper bound: mean [dim], radius, log2.
template <class A>
struct block_moments {
  static constexpr int most_levels = 17;
  A* count = nullptr;             ///< [blocks]
  A* rows = nullptr;              ///< [blocks, depth]
  int depth = 0;                  ///< of this estimate
  int offsets[most_levels] = {};  ///< first block of each level
  int levels = 0;

  static constexpr int depth_of(far_estimate const& estimate, int dim) noexcept {
    return estimate.by == far_estimate::kind::upper_bound ? dim + 2 : 2 * dim + 1;
  }
  /// Enough for either estimate.
  static constexpr int most_depth(int dim) noexcept { return 2 * dim + 2; }

  static int blocks(int kv_tokens, int block) noexcept {
    int total = 0;
    for (int n = ceil_div(kv_tokens, block);; n = ceil_div(n, detail::pyramid_fan)) {
      total += n;
      if (n <= 1) return total;
    }
  }
  A* row(int block) const noexcept { return rows + std::ptrdiff_t{block} * depth; }

  /// Room for the moments of `slots` KV heads or lists: they stand `blocks` blocks apart.
  template <class Arena>
  static block_moments take(Arena& arena, std::size_t slots, int blocks, int dim) noexcept {
    block_moments m;
    std::size_t const n = slots * static_cast<std::size_t>(blocks);
    m.count = arena.template take<A>(n);
    m.rows = arena.template take<A>(n * static_cast<std::size_t>(most_depth(dim)));
    return m;
  }

  /// The empty pyramid of a slot, for keys [0, tokens).
  block_moments begin(std::ptrdiff_t slot, int blocks, int tokens, far_estimate const& estimate,
                      int dim) const noexcept {
    block_moments m;
    m.depth = depth_of(estimate, dim);
    m.count = count + slot * blocks;
    m.rows = rows + slot * blocks * most_depth(dim);
    for (int below = ceil_div(tokens, estimate.block), at = 0;;
         below = ceil_div(below, detail::pyramid_fan)) {
      m.offsets[m.levels++] = at;
      at += below;
      if (below <= 1 || m.levels == most_levels) return m;
    }
  }
  /// Blocks of level l, of the pyramid that `begin` made for `tokens` keys.
  static int blocks_of(int level, int tokens, int block) noexcept {
    int n = ceil_div(tokens, block);
    for (; level > 0; --level) n = ceil_div(n, detail::pyramid_fan);
    return n;
  }
};

/// The keys that enter the moments: [sinks, tokens) without the entries of an ascending list.
struct moment_keys {
  int sinks = 0;
  int tokens = 0;
  int const* list = nullptr;
  int list_size = 0;

  template <class Use>
  void for_each(int begin, int end, Use const& use) const noexcept {
    int const* skip = std::lower_bound(list, list + list_size, begin);
    for (int j = std::max(begin, sinks); j < std::min(end, tokens); ++j) {
      while (skip != list + list_size && *skip < j) ++skip;
      if (skip != list + list_size && *skip == j) continue;
      use(j);
    }
  }
};

/// sum += x, or (x - mean)^2 where `mean` is given, over rows [dim] of keys; a packet at a time.
template <class T, class A>
inline void add_keys(T const* const* from, int keys, int dim, A const* mean, A* sum) noexcept {
  using P = packet<A>;
  auto const term = [](auto x, auto middle) {
    return simd::pmul(simd::psub(x, middle), simd::psub(x, middle));
  };
  int const whole = dim / lanes<A> * lanes<A>;
  for (int d = 0; d < whole; d += lanes<A>) {
    P total = simd::ploadu<P>(sum + d);
    if (mean == nullptr) {
      for (int n = 0; n < keys; ++n) total = simd::padd(total, load_widened<A>(from[n] + d));
    } else {
      P const middle = simd::ploadu<P>(mean + d);
      for (int n = 0; n < keys; ++n)
        total = simd::padd(total, term(load_widened<A>(from[n] + d), middle));
    }
    simd::pstoreu(sum + d, total);
  }
  for (int d = whole; d < dim; ++d) {
    for (int n = 0; n < keys; ++n) {
      A const x = static_cast<A>(from[n][d]);
      sum[d] += mean == nullptr ? x : (x - mean[d]) * (x - mean[d]);
    }
  }
}

/// Measures blocks [first, last) of the lowest level: the mean of the keys first, then, for the
/// estimate, the squared differences from it.
template <class T>
void measure_blocks(attention_call<T, host> const& call, int b, int g, moment_keys const& keys,
                    far_estimate const& estimate, int first, int last,
                    block_moments<accumulator_t<T>> const& m) noexcept {
  using A = accumulator_t<T>;
  constexpr int batch = 64;  // keys at a time
  int const dim = call.shape.dim;
  for (int n = first; n < last; ++n) {
    A* const mean = m.row(n);
    A* const variance = mean + dim;
    int count = 0;
    auto const add_up = [&](A const* middle, A* sum) {
      T const* from[batch];
      int size = 0;
      count = 0;
      std::fill_n(sum, dim, A(0));
      keys.for_each(n * estimate.block, (n + 1) * estimate.block, [&](int j) {
        from[size++] = call.k.at(b, g, j);
        ++count;
        if (size < batch) return;
        add_keys(from, size, dim, middle, sum);
        size = 0;
      });
      add_keys(from, size, dim, middle, sum);
      for (int d = 0; d < dim; ++d) sum[d] *= count > 0 ? A(1) / static_cast<A>(count) : A(0);
    };
    add_up(nullptr, mean);
    if (estimate.by == far_estimate::kind::upper_bound) *variance = A(0);
    else add_up(mean, variance);
    m.count[n] = static_cast<A>(count);
    mean[m.depth - 1] = std::log2(m.count[n]);
  }
}

/// The upper levels: each block pools the four below it. Radii are exact on each level.
template <class T>
void pool_blocks(attention_call<T, host> const& call, int b, int g, moment_keys const& keys,
                 far_estimate const& estimate, block_moments<accumulator_t<T>> const& m) noexcept {
  using A = accumulator_t<T>;
  using M = block_moments<A>;
  int const dim = call.shape.dim;
  bool const bound = estimate.by == far_estimate::kind::upper_bound;
  for (int level = 1; level < m.levels; ++level) {
    int const from = m.offsets[level - 1], to = m.offsets[level];
    for (int n = 0; n < M::blocks_of(level, keys.tokens, estimate.block); ++n) {
      int const first = from + n * detail::pyramid_fan;
      int const last = std::min(to, first + detail::pyramid_fan);
      A* const mean = m.row(to + n);
      A* const variance = mean + dim;
      std::fill_n(mean, m.depth, A(0));
      A total = 0;
      for (int c = first; c < last; ++c) total += m.count[c];
      m.count[to + n] = total;
      mean[m.depth - 1] = std::log2(total);
      if (!(total > A(0))) continue;
      for (int c = first; c < last; ++c) {
        A const share = m.count[c] / total;
        A const* const part = m.row(c);
        for (int d = 0; d < dim; ++d) mean[d] += share * part[d];
      }
      for (int c = first; c < last && !bound; ++c) {
        A const share = m.count[c] / total;
        A const* const part = m.row(c);
        for (int d = 0; d < dim; ++d) {
          A const off = part[d] - mean[d];
          variance[d] += share * (part[dim + d] + off * off);
        }
      }
    }
  }
  for (int level = 0; bound && level < m.levels; ++level) {
    int const span = estimate.block << 2 * level;
    for (int n = 0; n < ceil_div(keys.tokens, span); ++n) {
      A* const mean = m.row(m.offsets[level] + n);
      A most = 0;
      keys.for_each(n * span, (n + 1) * span, [&](int j) {
        T const* const k = call.k.at(b, g, j);
        A squared = 0;
        for (int d = 0; d < dim; ++d) {
          A const off = static_cast<A>(k[d]) - mean[d];
          squared += off * off;
        }
        most = std::max(most, squared);
      });
      mean[dim] = std::sqrt(most);
    }
  }
}

/// One thread's memory for far estimates, beside thread_scratch.
template <class A>
struct far_scratch {
  A* queries = nullptr;   ///< packed rows of a tile, extended to the depth of the moments
  A* panels = nullptr;    ///< [tile_keys] block rows
  int* blocks = nullptr;  ///< [blocks + 2], which blocks a group of rows sees
  A* high = nullptr;      ///< [slots], as in tile_scratch
  A* total = nullptr;     ///< [slots]
  A* lse = nullptr;       ///< [slots], nats

  template <class Arena>
  static far_scratch take(Arena& arena, int kv_tokens, int block, int dim) noexcept {
    auto const depth = static_cast<std::size_t>(block_moments<A>::most_depth(dim));
    auto const slots = static_cast<std::size_t>(tile_scratch<A>::slots);
    far_scratch s;
    s.queries = arena.template take<A>(static_cast<std::size_t>(tile_rows) * depth);
    s.panels = arena.template take<A>(static_cast<std::size_t>(tile_keys) * depth);
    s.blocks = arena.template take<int>(
        static_cast<std::size_t>(2 * block_moments<A>::blocks(kv_tokens, block) + 4));
    s.high = arena.template take<A>(slots);
    s.total = arena.template take<A>(slots);
    s.lse = arena.template take<A>(slots);
    return s;
  }
};

/// Extends `rows` rows q, packed with score_scale, so that their product with a block's row is its
/// logit: by their weighted squares, or their norm, and by 1.
template <class A>
void extend_rows(A const* q, int rows, int dim, far_estimate const& estimate, A* to) noexcept {
  A const weight = static_cast<A>(estimate.variance_weight) / (A(2) * log2_e<A>);
  int const size = dim * block_rows;
  for (int r0 = 0; r0 < rows; r0 += block_rows, q += size) {
    std::copy_n(q, size, to);
    to += size;
    if (estimate.by == far_estimate::kind::upper_bound) {
      std::fill_n(to, block_rows, A(0));
      for (int n = 0; n < size; ++n) to[n % block_rows] += q[n] * q[n];
      for (int r = 0; r < block_rows; ++r) to[r] = std::sqrt(to[r]);
      to += block_rows;
    } else {
      for (int n = 0; n < size; ++n) to[n] = weight * q[n] * q[n];
      to += size;
    }
    std::fill_n(to, block_rows, A(1));
    to += block_rows;
  }
}

/// The far log-sum-exps (nats) of rows [first, last) of an extended tile, to f.lse. The rows share
/// their whole blocks: all windows begin in one lowest block and end in one. `windows` [tile rows].
template <class A>
void estimate_group(key_range const* windows, int first, int last, near_field const& near,
                    mask limit, int kv_tokens, far_estimate const& estimate,
                    block_moments<A> const& m, int lowest, A* scores,
                    far_scratch<A> const& f) noexcept {
  constexpr int ld = tile_scratch<A>::ld, width = strip<A>;
  using S = tile_scratch<A>;
  int const size = estimate.block;
  // Whole blocks first, then the two that the windows cut.
  int count = 0;
  detail::for_each_far_block(windows[last - 1], near.sinks, kv_tokens, estimate, limit,
                             [&](int level, int n, key_range clip) {
                               if (clip.size() == size << 2 * level)
                                 f.blocks[count++] = m.offsets[level] + n;
                             });
  int const whole = count;
  int const left = windows[first].begin / size, right = ceil_div(windows[first].end, size) - 1;
  if (left < lowest) f.blocks[count++] = left;
  int const cut_left = count;
  if (limit == mask::full && right >= 0 && right < lowest) f.blocks[count++] = right;

  int const begin = first / block_rows * block_rows;
  std::fill(f.high + S::slot(begin), f.high + S::slots, empty_lse<A>());
  std::fill(f.total + S::slot(begin), f.total + S::slots, A(0));
  A shrink[block_lanes<A>];
  for (int base = 0; base < count; base += tile_keys) {
    int const columns = std::min(tile_keys, count - base), padded = round_up(columns, lanes<A>);
    for (int c = 0; c < columns; c += width) {
      A* const panel = f.panels + std::ptrdiff_t{c} * m.depth;
      pack_panel<A>([&](int n) -> A const* { return m.row(f.blocks[base + c + n]); },
                    std::min(width, columns - c), m.depth, panel);
    }
    for (int c = columns; c < padded; ++c) {  // padding counts no keys
      f.panels[std::ptrdiff_t{c / lanes<A> + 1} * lanes<A> * m.depth - lanes<A> + c % lanes<A>] =
          empty_lse<A>();
    }
    for (int r0 = begin; r0 < last; r0 += block_rows) {
      int const some = std::min(block_rows, last - r0);
      multiply_columns(f.queries + std::ptrdiff_t{r0} * m.depth, f.panels, m.depth, padded, scores,
                       ld);
      // The blocks that a window cuts count only the keys that are far for the row.
      for (int at = std::max(base, whole); at < std::min(base + columns, count); ++at) {
        A const most = m.count[f.blocks[at]], all = m.row(f.blocks[at])[m.depth - 1];
        int before = -1;
        A less = 0;
        for (int r = std::max(0, first - r0); r < some; ++r) {
          key_range const w = windows[r0 + r];
          int const clip = at < cut_left ? (w.begin > near.sinks ? w.begin - left * size : 0)
                                         : std::min((right + 1) * size, kv_tokens) - w.end;
          A const far = std::min(most, static_cast<A>(std::max(0, clip)));
          if (clip != before) less = far > A(0) ? std::log2(far) - all : empty_lse<A>();
          before = clip;
          A& score = scores[r * ld + at - base];
          score = far > A(0) ? score + less : empty_lse<A>();
        }
      }
      for (int r = 0; r < some; ++r) {
        if (hides_nan(scores + r * ld, padded)) f.total[S::slot(r0) + r] = lost<A>();
      }
      softmax_block<false>(scores, ld, some, padded, f.high + S::slot(r0), f.total + S::slot(r0),
                           shrink);
    }
  }
  for (int r = first; r < last; ++r) {
    int const at = S::slot(r);
    f.lse[at] = natural_lse(f.high[at], f.total[at]);
  }
}

/// The far log-sum-exps (nats) of the `rows` rows q of a tile, ascending by position, to f.lse at
/// their slots. `tokens`: the keys that the moments were measured for.
template <class A>
void estimate_tile(A const* q, int rows, key_range const* windows, near_field const& near,
                   mask limit, int kv_tokens, int dim, far_estimate const& estimate,
                   block_moments<A> const& m, int tokens, A* scores,
                   far_scratch<A> const& f) noexcept {
  int const size = estimate.block, lowest = ceil_div(tokens, size);
  extend_rows(q, rows, dim, estimate, f.queries);
  for (int first = 0, last = 0; first < rows; first = last) {
    key_range const one = windows[first];
    auto const shares = [&](key_range const& w) {  // its whole blocks with row `first`
      return w.begin / size == one.begin / size &&
             (limit == mask::causal || ceil_div(w.end, size) == ceil_div(one.end, size));
    };
    while (last < rows && shares(windows[last])) ++last;
    estimate_group(windows, first, last, near, limit, kv_tokens, estimate, m, lowest, scores, f);
  }
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
