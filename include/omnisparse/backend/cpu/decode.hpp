/// @file
/// Decoding on the CPU: each KV head's pages are read once for all query heads of its group, in
/// parts of fixed length that threads share and that merge in order.
#pragma once

#include <omnisparse/backend/cpu/flash_tile.hpp>
#include <omnisparse/backend/cpu/reference_decode.hpp>
#include <omnisparse/backend/cpu/threads.hpp>
#include <omnisparse/core/workspace.hpp>

#include <algorithm>

namespace omnisparse::cpu {

/// Pages of one part: enough work for a thread, and bits that do not depend on threads.
inline constexpr int part_pages = 8;

/// The memory of a decode step.
template <class A>
struct decode_memory {
  A* q = nullptr;      ///< [rows, group, dim], times log2(e) / sqrt(dim)
  A* sums = nullptr;   ///< [rows, parts, group, dim]
  A* high = nullptr;   ///< [rows, parts, group]
  A* total = nullptr;  ///< [rows, parts, group]
  unsigned char* fetches = nullptr;  ///< [rows, group]
  A* scratch = nullptr;              ///< [threads, scratch_size]
  std::size_t scratch_size = 0;
  int parts = 0;

  /// rows = batch * kv_heads.
  template <class Arena>
  static decode_memory take(Arena& arena, int rows, int group, int dim, int lane_pages,
                            int page_tokens, int threads) noexcept {
    auto const n = [](int a, int b, int c) {
      return static_cast<std::size_t>(a) * static_cast<std::size_t>(b) * static_cast<std::size_t>(c);
    };
    decode_memory m;
    m.parts = 2 * ceil_div(lane_pages, part_pages);
    m.q = arena.template take<A>(n(rows, group, dim));
    m.sums = arena.template take<A>(n(rows, m.parts, group) * static_cast<std::size_t>(dim));
    m.high = arena.template take<A>(n(rows, m.parts, group));
    m.total = arena.template take<A>(n(rows, m.parts, group));
    m.fetches = arena.template take<unsigned char>(n(rows, group, 1));
    m.scratch_size = round_up(n(round_up(page_tokens, strip<A>), group + 2 * dim, 1),
                              std::size_t{64});
    m.scratch = arena.template take<A>(m.scratch_size * static_cast<std::size_t>(threads));
    return m;
  }
};

/// Dot products of `heads` rows q [heads, dim] with one key [dim]; out is `ld` apart.
template <class A>
inline void dot_heads(A const* q, int heads, A const* key, int dim, A* out, int ld) noexcept {
  using P = packet<A>;
  for (int h = 0; h < heads; ++h, q += dim) {
    P sum = simd::pset1<P>(A(0)), other = sum;
    int d = 0;
    for (; d + 2 * lanes<A> <= dim; d += 2 * lanes<A>) {
      sum = simd::pmadd(simd::ploadu<P>(q + d), simd::ploadu<P>(key + d), sum);
      other = simd::pmadd(simd::ploadu<P>(q + d + lanes<A>), simd::ploadu<P>(key + d + lanes<A>),
                          other);
    }
    A dot = simd::predux(simd::padd(sum, other));
    for (; d < dim; ++d) dot += q[d] * key[d];
    out[h * ld] = dot;
  }
}

/// out [heads, dim] += p [heads] (ld apart) times values: rows of one page, heads innermost so that a
/// value is read once.
template <class A>
inline void add_values(A const* p, int ld, int heads, A const* values, int tokens, int dim,
                       A* out) noexcept {
  using P = packet<A>;
  constexpr int together = 4;
  for (int h0 = 0; h0 < heads; h0 += together) {
    int const some = std::min(together, heads - h0);
    int d = 0;
    for (; some == together && d + lanes<A> <= dim; d += lanes<A>) {
      P sum[together];
      for (int h = 0; h < together; ++h) sum[h] = simd::ploadu<P>(out + (h0 + h) * dim + d);
      for (int n = 0; n < tokens; ++n) {
        P const v = simd::ploadu<P>(values + n * dim + d);
        for (int h = 0; h < together; ++h) {
          sum[h] = simd::pmadd(simd::pset1<P>(p[(h0 + h) * ld + n]), v, sum[h]);
        }
      }
      for (int h = 0; h < together; ++h) simd::pstoreu(out + (h0 + h) * dim + d, sum[h]);
    }
    for (int h = h0; h < h0 + some; ++h) {
      int e = d;
      for (; e + lanes<A> <= dim; e += lanes<A>) {
        P sum = simd::ploadu<P>(out + h * dim + e);
        for (int n = 0; n < tokens; ++n) {
          sum = simd::pmadd(simd::pset1<P>(p[h * ld + n]), simd::ploadu<P>(values + n * dim + e),
                            sum);
        }
        simd::pstoreu(out + h * dim + e, sum);
      }
      for (; e < dim; ++e) {
        for (int n = 0; n < tokens; ++n) out[h * dim + e] += p[h * ld + n] * values[n * dim + e];
      }
    }
  }
}

/// One part of one (row, KV head): up to part_pages pages of one lane.
template <class T>
void decode_part(kv_cache_ref<host, T> const& cache, near_field const& near, int sequence,
                 std::int64_t lane, segment kind, int first_page, int group,
                 unsigned char const* fetches, accumulator_t<T> const* q, accumulator_t<T>* sums,
                 accumulator_t<T>* high, accumulator_t<T>* total,
                 accumulator_t<T>* scratch) noexcept {
  using A = accumulator_t<T>;
  int const dim = cache.dim, ld = round_up(cache.page_tokens, strip<A>);
  int const stored = cache.stored[lane], tokens = cache.appended[sequence];
  A* const scores = scratch;
  A* const wide_keys = scratch + std::ptrdiff_t{group} * ld;
  A* const wide_values = wide_keys + std::ptrdiff_t{ld} * dim;
  bool const some_skip = kind == segment::visual &&
                         std::any_of(fetches, fetches + group, [](auto f) { return f == 0; });
  bool const none_fetch = some_skip && std::none_of(fetches, fetches + group,
                                                    [](auto f) { return f != 0; });
  std::fill_n(sums, group * dim, A(0));
  std::fill_n(high, group, empty_lse<A>());
  std::fill_n(total, group, A(0));
  int const end = std::min(first_page + part_pages, ceil_div(stored, cache.page_tokens));
  for (int at = first_page; at < end; ++at) {
    int const page = cache.page(lane, at);
    int const count = std::min(cache.page_tokens, stored - at * cache.page_tokens);
    int const* const positions = cache.positions_at(page);
    auto const is_near = [&](int n) {
      return near.contains(positions[n], tokens - 1, tokens, mask::causal);
    };
    // Positions ascend and near is a prefix and a suffix of them: the ends tell for the page.
    if (none_fetch && !is_near(0) && !is_near(count - 1)) continue;
    T const* const keys = cache.keys_at(page);
    T const* const values = cache.values_at(page);
    A const* k;
    A const* v;
    if constexpr (std::is_same_v<T, A>) {
      k = keys;
      v = values;
    } else {
      for (int n = 0; n < count * dim; ++n) wide_keys[n] = static_cast<A>(keys[n]);
      for (int n = 0; n < count * dim; ++n) wide_values[n] = static_cast<A>(values[n]);
      k = wide_keys;
      v = wide_values;
    }
    for (int n = 0; n < count; ++n) dot_heads(q, group, k + n * dim, dim, scores + n, ld);
    int const columns = round_up(count, lanes<A>);
    for (int h = 0; h < group; ++h) {
      A* const row = scores + h * ld;
      if (some_skip && fetches[h] == 0) {
        for (int n = 0; n < count; ++n) {
          if (!is_near(n)) row[n] = empty_lse<A>();
        }
      }
      std::fill(row + count, row + columns, empty_lse<A>());
      A const shrink = softmax_row(row, columns, high[h], total[h]);
      if (shrink != A(1)) {
        for (int d = 0; d < dim; ++d) sums[h * dim + d] *= shrink;
      }
    }
    add_values(scores, ld, group, v, count, dim, sums);
  }
}

/// One decode step. Sequences are in use and shapes fit (checked by the caller).
template <class T, class Policies>
void decode(decode_call<T, host> const& call, kv_cache_ref<host, T> const& cache, Policies const& p,
            decode_memory<accumulator_t<T>> const& m, int threads) noexcept {
  using A = accumulator_t<T>;
  int const dim = cache.dim, group = call.q.extent(1) / cache.kv_heads;
  int const rows = call.q.extent(0) * cache.kv_heads, lane_parts = m.parts / 2;
  A const scale = score_scale<A>(dim);
  parallel_for(threads, rows, [&](long long row, int) {
    int const b = static_cast<int>(row) / cache.kv_heads, g = static_cast<int>(row) % cache.kv_heads;
    for (int h = 0; h < group; ++h) {
      T const* const q = call.q.at(b, g * group + h);
      A* const packed = m.q + (row * group + h) * dim;
      for (int d = 0; d < dim; ++d) packed[d] = static_cast<A>(q[d]) * scale;
    }
    decode_fetches(call, cache, p.fetcher, b, g, m.fetches + row * group);
  });
  auto const lane_of = [&](long long row, int part) {
    int const b = static_cast<int>(row) / cache.kv_heads, g = static_cast<int>(row) % cache.kv_heads;
    return cache.lane(call.sequence(b), g, part < lane_parts ? segment::text : segment::visual);
  };
  auto const is_empty = [&](long long row, int part) {
    int const first = part % lane_parts * part_pages * cache.page_tokens;
    return first >= cache.stored[lane_of(row, part)];
  };
  parallel_for(threads, static_cast<long long>(rows) * m.parts, [&](long long n, int thread) {
    long long const row = n / m.parts;
    int const part = static_cast<int>(n % m.parts);
    if (is_empty(row, part)) return;
    decode_part(cache, p.near, call.sequence(static_cast<int>(row) / cache.kv_heads),
                lane_of(row, part), part < lane_parts ? segment::text : segment::visual,
                part % lane_parts * part_pages, group, m.fetches + row * group,
                m.q + row * group * dim, m.sums + n * group * dim, m.high + n * group,
                m.total + n * group, m.scratch + m.scratch_size * static_cast<std::size_t>(thread));
  });
  parallel_for(threads, static_cast<long long>(rows) * group, [&](long long n, int) {
    long long const row = n / group;
    int const h = static_cast<int>(n % group), b = static_cast<int>(row) / cache.kv_heads;
    int const head = static_cast<int>(row) % cache.kv_heads * group + h;
    A high = empty_lse<A>(), total = 0;
    for (int part = 0; part < m.parts; ++part) {
      if (!is_empty(row, part)) high = std::max(high, m.high[(row * m.parts + part) * group + h]);
    }
    A* const merged = m.q + n * dim;  // the packed row is not needed any more
    std::fill_n(merged, dim, A(0));
    for (int part = 0; part < m.parts && high != empty_lse<A>(); ++part) {
      long long const at = (row * m.parts + part) * group + h;
      if (is_empty(row, part) || m.high[at] == empty_lse<A>()) continue;
      A const weight = std::exp2(m.high[at] - high);
      total += m.total[at] * weight;
      for (int d = 0; d < dim; ++d) merged[d] += m.sums[at * dim + d] * weight;
    }
    A const share = high == empty_lse<A>() ? A(0) : A(1) / total;
    for (int d = 0; d < dim; ++d) call.out(b, head, 0, d) = static_cast<T>(merged[d] * share);
    if (!call.lse.is_null()) {
      call.lse(b, head, 0) = natural_lse(high, total);
    }
  });
}

}  // namespace omnisparse::cpu
