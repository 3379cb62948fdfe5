/// @file
/// Block moments of the keys, and the log-sum-exp of what a row does not see estimated from them.
#pragma once

#include <omnisparse/backend/cpu/attend.hpp>
#include <omnisparse/detail/far_blocks.hpp>

#include <algorithm>
#include <cmath>

namespace omnisparse::cpu {

/// A pyramid of block moments over the keys of one (batch, KV head): count, mean, variance, radius.
template <class A>
struct block_moments {
  static constexpr int most_levels = 17;
  A* count = nullptr;             ///< [blocks]
  A* radius = nullptr;            ///< [blocks], only for the upper bound
  A* mean = nullptr;              ///< [blocks, dim]
  A* variance = nullptr;          ///< [blocks, dim], only for the estimate
  int offsets[most_levels] = {};  ///< first block of each level
  int levels = 0;
  int lowest = 0;  ///< measured blocks of the lowest level

  static int blocks(int kv_tokens, int block) noexcept {
    int total = 0;
    for (int n = ceil_div(kv_tokens, block);; n = ceil_div(n, detail::pyramid_fan)) {
      total += n;
      if (n <= 1) return total;
    }
  }

  template <class Arena>
  static block_moments take(Arena& arena, int kv_tokens, int block, int dim) noexcept {
    auto const n = static_cast<std::size_t>(blocks(kv_tokens, block));
    block_moments m;
    m.count = arena.template take<A>(n);
    m.radius = arena.template take<A>(n);
    m.mean = arena.template take<A>(n * static_cast<std::size_t>(dim));
    m.variance = arena.template take<A>(n * static_cast<std::size_t>(dim));
    return m;
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

/// Measures all blocks. The lowest level reads each key twice (mean first, then squared
/// differences); upper levels pool the four below them; radii are exact on each level.
template <class T>
void measure_blocks(attention_call<T, host> const& call, int b, int g, moment_keys const& keys,
                    far_estimate const& estimate, int threads,
                    block_moments<accumulator_t<T>>& m) noexcept {
  using A = accumulator_t<T>;
  int const dim = call.shape.dim;
  bool const bound = estimate.by == far_estimate::kind::upper_bound;
  int const lowest = ceil_div(keys.tokens, estimate.block);
  m.lowest = lowest;
  parallel_for(threads, ceil_div(lowest, 16), [&](long long part, int) {
    int const first = static_cast<int>(part) * 16;
    for (int n = first; n < std::min(lowest, first + 16); ++n) {
      A* const mean = m.mean + std::ptrdiff_t{n} * dim;
      A* const variance = m.variance + std::ptrdiff_t{n} * dim;
      int const begin = n * estimate.block, end = begin + estimate.block;
      int count = 0;
      std::fill_n(mean, dim, A(0));
      std::fill_n(variance, dim, A(0));
      keys.for_each(begin, end, [&](int j) {
        T const* const k = call.k.at(b, g, j);
        for (int d = 0; d < dim; ++d) mean[d] += static_cast<A>(k[d]);
        ++count;
      });
      A const share = count > 0 ? A(1) / static_cast<A>(count) : A(0);
      for (int d = 0; d < dim; ++d) mean[d] *= share;
      if (!bound) {
        keys.for_each(begin, end, [&](int j) {
          T const* const k = call.k.at(b, g, j);
          for (int d = 0; d < dim; ++d) {
            A const off = static_cast<A>(k[d]) - mean[d];
            variance[d] += off * off;
          }
        });
        for (int d = 0; d < dim; ++d) variance[d] *= share;
      }
      m.count[n] = static_cast<A>(count);
    }
  });
  m.levels = 1;
  m.offsets[0] = 0;
  for (int below = lowest; below > 1 && m.levels < block_moments<A>::most_levels; ++m.levels) {
    int const from = m.offsets[m.levels - 1], to = from + below;
    int const blocks = ceil_div(below, detail::pyramid_fan);
    m.offsets[m.levels] = to;
    for (int n = 0; n < blocks; ++n) {
      int const first = from + n * detail::pyramid_fan;
      int const last = std::min(to, first + detail::pyramid_fan);
      A* const mean = m.mean + std::ptrdiff_t{to + n} * dim;
      A* const variance = m.variance + std::ptrdiff_t{to + n} * dim;
      A total = 0;
      for (int c = first; c < last; ++c) total += m.count[c];
      m.count[to + n] = total;
      std::fill_n(mean, dim, A(0));
      std::fill_n(variance, dim, A(0));
      if (!(total > A(0))) continue;
      for (int c = first; c < last; ++c) {
        A const share = m.count[c] / total;
        A const* const part = m.mean + std::ptrdiff_t{c} * dim;
        for (int d = 0; d < dim; ++d) mean[d] += share * part[d];
      }
      for (int c = first; c < last; ++c) {
        A const share = m.count[c] / total;
        A const* const part = m.mean + std::ptrdiff_t{c} * dim;
        A const* const spread = m.variance + std::ptrdiff_t{c} * dim;
        for (int d = 0; d < dim; ++d) {
          A const off = part[d] - mean[d];
          variance[d] += share * (spread[d] + off * off);
        }
      }
    }
    below = blocks;
  }
  if (!bound) return;
  for (int level = 0; level < m.levels; ++level) {
    int const span = estimate.block << 2 * level;
    parallel_for(threads, ceil_div(keys.tokens, span), [&](long long at, int) {
      int const n = static_cast<int>(at);
      A const* const mean = m.mean + std::ptrdiff_t{m.offsets[level] + n} * dim;
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
      m.radius[m.offsets[level] + n] = std::sqrt(most);
    });
  }
}

/// One thread's memory for far estimates, beside thread_scratch.
template <class A>
struct far_scratch {
  A* squares = nullptr;    ///< [tile_rows, dim], packed rows squared
  A* norms = nullptr;      ///< [tile_rows]
  A* means = nullptr;      ///< panels of tile_keys block means
  A* variances = nullptr;  ///< panels of tile_keys block variances
  int* blocks = nullptr;   ///< [blocks + 2], which blocks a group of rows sees

  template <class Arena>
  static far_scratch take(Arena& arena, int kv_tokens, int block, int dim) noexcept {
    auto const d = static_cast<std::size_t>(dim);
    far_scratch s;
    s.squares = arena.template take<A>(static_cast<std::size_t>(tile_rows) * d);
    s.norms = arena.template take<A>(static_cast<std::size_t>(tile_rows));
    s.means = arena.template take<A>(static_cast<std::size_t>(tile_keys) * d);
    s.variances = arena.template take<A>(static_cast<std::size_t>(tile_keys) * d);
    s.blocks = arena.template take<int>(
        static_cast<std::size_t>(2 * block_moments<A>::blocks(kv_tokens, block) + 4));
    return s;
  }
};

/// The far log-sum-exps (nats) of up to tile_rows rows that share their whole blocks: the windows
/// of all rows begin in one lowest block and end in one. `windows` [rows]; emit(r, lse).
template <class T, class At, class Emit>
void estimate_far(At row_at, key_range const* windows, int rows, near_field const& near, mask limit,
                  int kv_tokens, int dim, far_estimate const& estimate,
                  block_moments<accumulator_t<T>> const& m,
                  thread_scratch<accumulator_t<T>> const& s, far_scratch<accumulator_t<T>> const& f,
                  Emit const& emit) noexcept {
  using A = accumulator_t<T>;
  constexpr int ld = tile_scratch<A>::ld, width = strip<A>;
  bool const bound = estimate.by == far_estimate::kind::upper_bound;
  int const padded = round_up(rows, block_rows), size = estimate.block;
  pack_rows<A>(row_at, rows, dim, score_scale<A>(dim), s.q);
  for (int n = 0; n < padded * dim; ++n) f.squares[n] = s.q[n] * s.q[n];
  for (int r = 0; r < padded; ++r) {
    A sum = 0;
    A const* const block = f.squares + std::ptrdiff_t{r / block_rows * block_rows} * dim;
    for (int d = 0; d < dim; ++d) sum += block[d * block_rows + r % block_rows];
    f.norms[r] = std::sqrt(sum);
  }
  // Whole blocks first, then the two that the windows cut.
  int count = 0;
  auto const add = [&](int level, int n, key_range clip) {
    if (clip.size() == size << 2 * level) f.blocks[count++] = m.offsets[level] + n;
  };
  detail::for_each_far_block(windows[rows - 1], near.sinks, kv_tokens, estimate, limit, add);
  int const whole = count;
  int const left = windows[0].begin / size, right = ceil_div(windows[0].end, size) - 1;
  if (left < m.lowest) f.blocks[count++] = left;
  int const cut_left = count;
  if (limit == mask::full && right >= 0 && right < m.lowest) f.blocks[count++] = right;

  std::fill_n(s.tile.high, padded, empty_lse<A>());
  std::fill_n(s.tile.total, padded, A(0));
  A first[std::size_t{block_rows} * width], second[std::size_t{block_rows} * width];
  A biases[tile_keys];  // log2 of the blocks' counts, -inf for an empty block
  A extras[tile_keys];  // their radii
  A const weight = static_cast<A>(estimate.variance_weight) / (A(2) * log2_e<A>);
  for (int base = 0; base < count; base += tile_keys) {
    int const columns = std::min(tile_keys, count - base);
    for (int c = 0; c < columns; c += width) {
      int const some = std::min(width, columns - c);
      auto const of = [&](A const* moments) {
        return [=, &f](int n) {
          return moments + static_cast<std::ptrdiff_t>(f.blocks[base + c + n]) * dim;
        };
      };
      pack_panel<A>(of(m.mean), some, dim, f.means + std::ptrdiff_t{c} * dim);
      if (!bound) pack_panel<A>(of(m.variance), some, dim, f.variances + std::ptrdiff_t{c} * dim);
    }
    for (int c = 0; c < round_up(columns, width); ++c) {
      biases[c] = c < columns ? std::log2(m.count[f.blocks[base + c]]) : empty_lse<A>();
      extras[c] = bound && c < columns ? m.radius[f.blocks[base + c]] : A(0);
    }
    for (int r0 = 0; r0 < rows; r0 += block_rows) {
      int const some_rows = std::min(block_rows, rows - r0);
      A* const scores = s.tile.scores;
      for (int c = 0; c < columns; c += width) {
        multiply_keys(s.q + std::ptrdiff_t{r0} * dim, f.means + std::ptrdiff_t{c} * dim, dim, first,
                      width);
        if (!bound) {
          multiply_keys(f.squares + std::ptrdiff_t{r0} * dim, f.variances + std::ptrdiff_t{c} * dim,
                        dim, second, width);
        }
        for (int r = 0; r < some_rows; ++r) {
          A* const row = scores + r * ld + c;
          A const* const on_mean = first + r * width;
          A const* const on_spread = second + r * width;
          if (bound) {
            for (int n = 0; n < width; ++n)
              row[n] = on_mean[n] + f.norms[r0 + r] * extras[c + n] + biases[c + n];
          } else {
            for (int n = 0; n < width; ++n)
              row[n] = on_mean[n] + weight * on_spread[n] + biases[c + n];
          }
        }
      }
      // The blocks that a window cuts count only the keys that are far for the row.
      for (int at = std::max(base, whole); at < std::min(base + columns, count); ++at) {
        A const most = m.count[f.blocks[at]];
        for (int r = 0; r < some_rows; ++r) {
          key_range const w = windows[r0 + r];
          int const clip = at < cut_left ? (w.begin > near.sinks ? w.begin - left * size : 0)
                                         : std::min((right + 1) * size, kv_tokens) - w.end;
          A const far = std::min(most, static_cast<A>(std::max(0, clip)));
          A& score = scores[r * ld + at - base];
          score = far > A(0) ? score - biases[at - base] + std::log2(far) : empty_lse<A>();
        }
      }
      for (int r = 0; r < some_rows; ++r) {
        softmax_row(scores + r * ld, round_up(columns, width), s.tile.high[r0 + r],
                    s.tile.total[r0 + r]);
      }
    }
  }
  for (int r = 0; r < rows; ++r) emit(r, tile_lse(s.tile, r));
}

}  // namespace omnisparse::cpu
