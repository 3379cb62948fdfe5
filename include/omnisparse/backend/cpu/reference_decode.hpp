/// @file
/// The oracle of decoding: one row against the stored tokens, in double precision.
#pragma once

#include <omnisparse/backend/cpu/reference.hpp>
#include <omnisparse/cache/kv_cache_ref.hpp>
#include <omnisparse/core/decode_call.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

/// What the decode classifier of head h sees: the row's logits on the mean of the first keys and on
/// the mean of all others ever appended.
template <class T>
observation::sink_and_mean decode_contrast(T const* q, kv_cache_ref<host, T> const& cache,
                                           int sequence, int kv_head,
                                           softmax_scale scale = {}) noexcept {
  double logit[2] = {0, 0};
  int const sinks = smaller(cache.sink_keys, cache.appended[sequence]);
  int const counts[2] = {sinks, cache.appended[sequence] - sinks};
  for (int part = 0; part < 2; ++part) {
    double const* const sum = cache.key_sum_at(sequence, kv_head, part);
    for (int d = 0; d < cache.dim; ++d) logit[part] += static_cast<double>(q[d]) * sum[d];
    logit[part] = scale.logit(logit[part], cache.dim) / larger(1, counts[part]);
  }
  double const share = counts[1] > 0 ? contrast_share(logit[0], logit[1]) : 0.0;
  return {static_cast<float>(logit[0]), static_cast<float>(logit[1]), static_cast<float>(share)};
}

/// Which heads of KV head g read the stored visual tokens beyond their near fields, into `fetches`
/// [group]; with a fetcher whose `any` is true, all of them when one does.
template <class T, class Fetcher>
void decode_fetches(decode_call<T, host> const& call, kv_cache_ref<host, T> const& cache,
                    Fetcher const& fetcher, int b, int g, unsigned char* fetches) noexcept {
  int const group = call.q.extent(1) / cache.kv_heads;
  bool any = false;
  for (int n = 0; n < group; ++n) {
    bool asks = false;
    if constexpr (std::same_as<observed<Fetcher>, observation::sink_and_mean>) {
      asks = fetcher.fetches(
          decode_contrast(call.q.at(b, g * group + n), cache, call.sequence(b), g, call.scale));
    } else {
      asks = fetcher.fetches({});
    }
    fetches[n] = asks ? 1 : 0;
    any = any || asks;
  }
  if constexpr (requires { fetcher.any; }) {
    if (fetcher.any && any) std::fill_n(fetches, group, static_cast<unsigned char>(1));
  }
}

/// Gives each token that a head of KV head g reads to use(key, step, value), as exact_row takes
/// them: text always, visual tokens when near or when the head `fetches`.
template <class T, class Use>
void for_each_read(kv_cache_ref<host, T> const& cache, near_field const& near, int sequence, int g,
                   bool fetches, Use const& use) noexcept {
  int const tokens = cache.appended[sequence];
  for (segment const kind : {segment::text, segment::visual}) {
    std::int64_t const lane = cache.lane(sequence, g, kind);
    for (int n = 0; n < cache.stored[lane]; ++n) {
      int const page = cache.page(lane, n / cache.page_tokens), slot = n % cache.page_tokens;
      int const position = *cache.positions_at(page, slot);
      if (kind == segment::visual && !fetches &&
          !near.contains(position, tokens - 1, tokens, mask::causal)) {
        continue;
      }
      use(static_cast<T const*>(cache.keys_at(page, slot)), std::ptrdiff_t{cache.page_tokens},
          static_cast<T const*>(cache.values_at(page, slot)));
    }
  }
}

/// Each head's row over what it reads.
template <class T, class Policies>
void reference_decode(decode_call<T, host> const& call, kv_cache_ref<host, T> const& cache,
                      Policies const& p) {
  using E = exact_t<T>;
  int const group = call.q.extent(1) / cache.kv_heads;
  for (int b = 0; b < call.q.extent(0); ++b) {
    std::vector<unsigned char> fetches(static_cast<std::size_t>(call.q.extent(1)));
    for (int g = 0; g < cache.kv_heads; ++g) {
      decode_fetches(call, cache, p.fetcher, b, g, fetches.data() + g * group);
    }
    for (int h = 0; h < call.q.extent(1); ++h) {
      std::vector<E> logits;
      std::vector<T const*> values;
      for_each_read(
          cache, p.near, call.sequence(b), h / group, fetches[static_cast<std::size_t>(h)] != 0,
          [&](T const* key, std::ptrdiff_t step, T const* value) {
            logits.push_back(exact_logit(call.q.at(b, h), key, step, cache.dim, call.scale));
            values.push_back(value);
          });
      E const lse = reference_lse(logits);
      for (int d = 0; d < cache.dim; ++d) {
        E sum = 0;
        for (std::size_t n = 0; n < logits.size(); ++n) {
          sum += exact_weight(logits[n], lse) * static_cast<E>(values[n][d]);
        }
        call.out(b, h, 0, d) = static_cast<T>(static_cast<accumulator_t<T>>(sum));
      }
      if (!call.lse.is_null()) call.lse(b, h, 0) = static_cast<accumulator_t<T>>(lse);
    }
  }
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
