/// @file
/// Decoding on the CPU: each KV head's pages are read once for all query heads of its group, in
/// parts of fixed length that threads share and that merge in order.
#pragma once

#include <omnisparse/backend/cpu/decode_product.hpp>
#include <omnisparse/backend/cpu/flash_tile.hpp>
#include <omnisparse/backend/cpu/reference_decode.hpp>
#include <omnisparse/backend/cpu/threads.hpp>
#include <omnisparse/core/workspace.hpp>

#include <algorithm>
#include <cstdint>

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

/// Pages of one part: enough work for a thread, and bits that do not depend on threads.
inline constexpr int part_pages = 8;

/// The memory of a decode step.
template <class A>
struct decode_memory {
  A* q = nullptr;      ///< [rows, dim, group], times score_scale
  A* sums = nullptr;   ///< [rows, parts, group, width], columns from dim on mean nothing
  A* high = nullptr;   ///< [rows, parts, group]
  A* total = nullptr;  ///< [rows, parts, group]
  unsigned char* fetches = nullptr;  ///< [rows, group]
  A* scores = nullptr;               ///< [threads, group, decode_ld]
  int* work = nullptr;               ///< [rows * parts]: the parts that hold tokens
  int threads = 1;
  int parts = 0;
  int width = 0;  ///< dim, rounded up to whole packets

  /// rows = batch * kv_heads.
  template <class Arena>
  static decode_memory take(Arena& arena, int rows, int group, int dim, int lane_pages,
                            int threads) noexcept {
    auto const n = [](int a, int b, int c) {
      return static_cast<std::size_t>(a) * static_cast<std::size_t>(b) *
             static_cast<std::size_t>(c);
    };
    decode_memory m;
    m.threads = threads;
    m.parts = 2 * ceil_div(lane_pages, part_pages);
    m.width = round_up(dim, lanes<A>);
    m.q = arena.template take<A>(n(rows, group, dim));
    m.sums = arena.template take<A>(n(rows, m.parts, group) * static_cast<std::size_t>(m.width));
    m.high = arena.template take<A>(n(rows, m.parts, group));
    m.total = arena.template take<A>(n(rows, m.parts, group));
    m.fetches = arena.template take<unsigned char>(n(rows, group, 1));
    m.scores = arena.template take<A>(n(threads, group, decode_ld<A>));
    m.work = arena.template take<int>(n(rows, m.parts, 1));
    return m;
  }
};

/// What the heads of one (row, KV head) read of one lane of the cache.
template <class T>
struct lane_reader {
  using A = accumulator_t<T>;
  kv_cache_ref<host, T> const& cache;
  near_field const& near;
  int tokens;  ///< ever appended: the row stands at the last
  std::int64_t lane;
  int group;
  unsigned char const* fetches;  ///< [group], or null: every head reads every token
  A const* q;                    ///< [dim, group]

  /// A few neighbouring tokens of one page.
  struct step {
    int page = 0;
    int slot = 0;
    int count = 0;
  };
  /// Of a step's tokens a head sees [0, left) and [right, count).
  struct sight {
    int left = 0;
    int right = 0;
  };

  /// The step at token `n`, one that the lane stores.
  step at(int n) const noexcept {
    int const slot = n % cache.page_tokens;
    int const left = std::min(cache.page_tokens - slot, cache.stored[lane] - n);
    return {cache.page(lane, n / cache.page_tokens), slot, std::min(decode_keys, left)};
  }

  /// Positions ascend and near is a prefix and a suffix of them.
  sight near_of(step const& s) const noexcept {
    int const* const positions = cache.positions_at(s.page, s.slot);
    auto const is_near = [&](int n) {
      return near.contains(positions[n], tokens - 1, tokens, mask::causal);
    };
    sight seen{0, s.count};
    while (seen.left < s.count && is_near(seen.left)) ++seen.left;
    while (seen.right > seen.left && is_near(seen.right - 1)) --seen.right;
    return seen;
  }
};

/// The state of one part: running sums under one online softmax, as in tile_scratch; `high` starts
/// empty.
template <class A>
struct part_state {
  A* sums = nullptr;   ///< [group, width]
  A* high = nullptr;   ///< [group]
  A* total = nullptr;  ///< [group]
  int width = 0;
};

/// Attends the heads of a group to one step; `next` is asked for meanwhile.
template <class T>
void decode_step(lane_reader<T> const& from, typename lane_reader<T>::step const& s,
                 typename lane_reader<T>::step const& next, part_state<accumulator_t<T>> const& to,
                 accumulator_t<T>* scores) noexcept {
  using A = accumulator_t<T>;
  kv_cache_ref<host, T> const& cache = from.cache;
  int const dim = cache.dim, group = from.group;
  typename lane_reader<T>::sight const all{s.count, s.count};
  auto near = all;
  bool alike = true;  // do all heads see the same?
  if (from.fetches != nullptr) {
    near = from.near_of(s);
    auto const reads = std::count(from.fetches, from.fetches + group, 1);
    if (reads == 0 && near.left == 0 && near.right == s.count) return;
    alike = reads == 0 || near.left == s.count;
  }
  auto const sees = [&](int h) {
    return from.fetches != nullptr && from.fetches[h] == 0 ? near : all;
  };
  auto const address = [](T const* p) { return reinterpret_cast<std::uintptr_t>(p); };
  score_keys(from.q, group, cache.keys_at(s.page, s.slot), cache.page_tokens, s.count, dim,
             address(cache.keys_at(next.page, next.slot)), scores);
  int const columns = round_up(s.count, lanes<A>);
  // Past the range of A downwards a score would pass for one that is not seen.
  auto least = simd::pset1<packet<A>>(A(0));
  for (int h = 0; h < group; ++h) {
    for (int n = 0; n < columns; n += lanes<A>) {
      least = simd::pmin(least, simd::ploadu<packet<A>>(scores + h * decode_ld<A> + n));
    }
  }
  bool const tame = !finite_math && is_finite(simd::predux_min(least));
  for (int h = 0; h < group; ++h) {
    A* const row = scores + h * decode_ld<A>;
    if (!tame && !(all_finite(row, sees(h).left) &&
                   all_finite(row + sees(h).right, s.count - sees(h).right))) {
      to.total[h] = lost<A>();
    }
    std::fill(row + sees(h).left, row + sees(h).right, empty_lse<A>());
    std::fill(row + s.count, row + columns, empty_lse<A>());
    A const shrink = softmax_row(row, columns, to.high[h], to.total[h]);
    if (shrink != A(1)) {
      for (int d = 0; d < to.width; ++d) to.sums[h * to.width + d] *= shrink;
    }
  }
  // Only what is seen is multiplied: 0 times a value that is not finite would be NaN.
  auto const add = [&](int h, int heads, int first, int last) {
    add_values(scores + h * decode_ld<A> + first, heads, cache.values_at(s.page, s.slot + first),
               last - first, dim, address(cache.values_at(next.page, next.slot)),
               to.sums + h * to.width, to.width);
  };
  int const together = alike ? group : 1;
  for (int h = 0; h < group; h += together) {
    add(h, together, 0, sees(h).left);
    add(h, together, sees(h).right, s.count);
  }
}

/// One part of one (row, KV head): up to part_pages pages of one lane.
template <class T>
void decode_part(lane_reader<T> const& from, int first_page, part_state<accumulator_t<T>> const& to,
                 accumulator_t<T>* scores) noexcept {
  using A = accumulator_t<T>;
  std::fill_n(to.sums, from.group * to.width, A(0));
  std::fill_n(to.total, from.group, A(0));
  int const page_tokens = from.cache.page_tokens;
  int const stored = from.cache.stored[from.lane];
  int const end = std::min((first_page + part_pages) * page_tokens, stored);
  int n = first_page * page_tokens;
  for (auto now = from.at(n); n < end;) {
    n += now.count;
    // The next part's too: often it is the same thread's. At the end of the lane, what is at hand.
    auto const next = n < stored ? from.at(n) : now;
    decode_step(from, now, next, to, scores);
    now = next;
  }
}

/// Merges the parts of one row and head into the output row and its log-sum-exp; exactly, where the
/// parts or their sum left the range of A. `merged` [dim] is scratch.
template <class T>
void merge_parts(decode_call<T, host> const& call, kv_cache_ref<host, T> const& cache,
                 near_field const& near, decode_memory<accumulator_t<T>> const& m, int group,
                 int row, int h, int b, int head, accumulator_t<T>* merged) noexcept {
  using A = accumulator_t<T>;
  int const dim = call.q.extent(3);
  auto const state = [&](int part) { return (std::ptrdiff_t{row} * m.parts + part) * group + h; };
  A high = empty_lse<A>(), total = 0;
  for (int part = 0; part < m.parts; ++part) high = std::max(high, m.high[state(part)]);
  bool sound = !is_coarse(score_scale<A>(call.scale, dim));
  std::fill_n(merged, dim, A(0));
  for (int part = 0; part < m.parts; ++part) {
    std::ptrdiff_t const at = state(part);
    sound = sound && is_finite(m.total[at]);
    if (is_empty(m.high[at])) continue;
    A const weight = std::exp2(m.high[at] - high);
    total += m.total[at] * weight;
    for (int d = 0; d < dim; ++d) merged[d] += m.sums[at * m.width + d] * weight;
  }
  A lse = natural_lse(high, total);
  A const share = is_empty(high) ? A(0) : A(1) / total;
  for (int d = 0; d < dim; ++d) merged[d] *= share;
  if (!sound || !(is_finite(lse) || is_empty(lse)) || !all_finite(merged, dim)) {
    auto const for_each_key = [&](auto const& use) {
      for_each_read(cache, near, call.sequence(b), row % cache.kv_heads,
                    m.fetches[std::ptrdiff_t{row} * group + h] != 0, use);
    };
    lse = exact_row(call.q.at(b, head), dim, call.scale, for_each_key,
                    [&](int d, A x) { merged[d] = x; });
  }
  for (int d = 0; d < dim; ++d) call.out(b, head, 0, d) = static_cast<T>(merged[d]);
  if (!call.lse.is_null()) call.lse(b, head, 0) = lse;
}

/// One decode step. Sequences are in use and shapes fit (checked by the caller).
template <class T, class Policies>
void decode(decode_call<T, host> const& call, kv_cache_ref<host, T> const& cache, Policies const& p,
            decode_memory<accumulator_t<T>> const& m) noexcept {
  using A = accumulator_t<T>;
  int const threads = m.threads;
  int const dim = cache.dim, group = call.q.extent(1) / cache.kv_heads;
  int const rows = call.q.extent(0) * cache.kv_heads, lane_parts = m.parts / 2;
  A const scale = score_scale<A>(call.scale, dim);
  auto const batch_of = [&](int row) { return row / cache.kv_heads; };
  auto const kv_head_of = [&](int row) { return row % cache.kv_heads; };
  auto const q_of = [&](int row) { return m.q + std::ptrdiff_t{row} * group * dim; };
  parallel_for(threads, rows, [&](long long n, int) {
    int const row = static_cast<int>(n), b = batch_of(row), g = kv_head_of(row);
    for (int h = 0; h < group; ++h) {
      T const* const q = call.q.at(b, g * group + h);
      for (int d = 0; d < dim; ++d) q_of(row)[d * group + h] = static_cast<A>(q[d]) * scale;
    }
    decode_fetches(call, cache, p.fetcher, b, g, m.fetches + n * group);
  });

  auto const kind_of = [&](int part) {
    return part < lane_parts ? segment::text : segment::visual;
  };
  auto const lane_of = [&](int row, int part) {
    return cache.lane(call.sequence(batch_of(row)), kv_head_of(row), kind_of(part));
  };
  auto const first_page = [&](int part) { return part % lane_parts * part_pages; };
  std::fill_n(m.high, std::ptrdiff_t{rows} * m.parts * group, empty_lse<A>());
  std::fill_n(m.total, std::ptrdiff_t{rows} * m.parts * group, A(0));
  int count = 0;
  for (int n = 0; n < rows * m.parts; ++n) {
    int const row = n / m.parts, part = n % m.parts;
    bool const holds = first_page(part) * cache.page_tokens < cache.stored[lane_of(row, part)];
    if (holds) m.work[count++] = n;
  }
  // Neighbouring parts go to one thread, which asks for each while it is at the one before.
  int const run = std::clamp(count / (8 * threads), 1, 8);
  parallel_for(threads, ceil_div(count, run), [&](long long at, int thread) {
    int const first = static_cast<int>(at) * run;
    for (int w = first; w < std::min(first + run, count); ++w) {
      int const n = m.work[w], row = n / m.parts, part = n % m.parts;
      unsigned char const* const fetches = m.fetches + std::ptrdiff_t{row} * group;
      bool const some_skip = kind_of(part) == segment::visual &&
                             std::find(fetches, fetches + group, 0) != fetches + group;
      lane_reader<T> const reader{cache,
                                  p.near,
                                  cache.appended[call.sequence(batch_of(row))],
                                  lane_of(row, part),
                                  group,
                                  some_skip ? fetches : nullptr,
                                  q_of(row)};
      std::ptrdiff_t const state = std::ptrdiff_t{n} * group;
      decode_part(reader, first_page(part),
                  part_state<A>{m.sums + state * m.width, m.high + state, m.total + state, m.width},
                  m.scores + std::ptrdiff_t{thread} * group * decode_ld<A>);
    }
  });
  parallel_for(threads, static_cast<long long>(rows) * group, [&](long long n, int) {
    int const row = static_cast<int>(n / group), h = static_cast<int>(n % group);
    // The packed rows are not needed any more.
    merge_parts(call, cache, p.near, m, group, row, h, batch_of(row), kv_head_of(row) * group + h,
                m.q + n * dim);
  });
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
