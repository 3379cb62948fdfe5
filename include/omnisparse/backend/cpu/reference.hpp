/// @file
/// The oracle: attention by the definition, in double precision. Obvious, and slow for ever.
#pragma once

#include <omnisparse/backend/cpu/exact_row.hpp>
#include <omnisparse/backend/cpu/shares.hpp>
#include <omnisparse/core/call.hpp>
#include <omnisparse/core/merge.hpp>
#include <omnisparse/plan/plan.hpp>

#include <cmath>
#include <cstddef>
#include <vector>

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

/// scale q . k, exact enough for all finite elements.
template <class T>
exact_t<T> reference_logit(T const* q, T const* k, int dim, softmax_scale scale = {}) {
  return exact_logit(q, k, 1, dim, scale);
}

/// log(sum(exp(x))) of a list; -inf for an empty one, NaN where one is NaN.
template <class E>
E reference_lse(std::vector<E> const& x) {
  E high = static_cast<E>(empty_lse<double>());
  for (E const value : x) {
    if (is_nan(kind_of(value))) return value;
    high = value > high ? value : high;
  }
  if (is_empty(kind_of(high))) return high;
  E sum = 0;
  for (E const value : x) sum += exact_weight(value, high);
  return high + std::log(sum);
}

/// Does a row see key j? Section by section of the definition: near(i), then far(i, h) by class.
/// `listed[j]` tells whether the row's list holds j.
inline bool reference_sees(row_class kind, near_field const& near, mask limit, int position,
                           int kv_tokens, std::vector<bool> const& listed, int j) {
  if (!near_field::visible(position, kv_tokens, limit).contains(j)) return false;
  if (near.contains(j, position, kv_tokens, limit)) return true;
  if (kind == row_class::rescued) return true;
  return kind == row_class::active && listed[static_cast<std::size_t>(j)];
}

/// The list of (batch, chunk, KV head) as one flag a key.
inline std::vector<bool> reference_list(plan_view<host> const& plan, int b, int c, int g) {
  std::vector<bool> listed(static_cast<std::size_t>(plan.shape.kv_tokens), false);
  int const* const kept = plan.kept_at(b, c, g);
  for (int n = 0; n < plan.kept_counts[plan.list(b, c, g)]; ++n) {
    listed[static_cast<std::size_t>(kept[n])] = true;
  }
  return listed;
}

/// One softmax over `keys` of head (b, h), row i: out [dim] and lse. No keys: 0 and -inf.
template <class T>
exact_t<T> reference_row(attention_call<T, host> const& call, int b, int h, int i,
                         std::vector<int> const& keys, std::vector<exact_t<T>>& out) {
  using E = exact_t<T>;
  int const g = h / call.shape.group(), dim = call.shape.dim;
  std::vector<E> logits;
  for (int const j : keys) {
    logits.push_back(reference_logit(call.q.at(b, h, i), call.k.at(b, g, j), dim, call.scale));
  }
  E const lse = reference_lse(logits);
  out.assign(static_cast<std::size_t>(dim), E(0));
  for (std::size_t n = 0; n < keys.size(); ++n) {
    E const p = exact_weight(logits[n], lse);
    T const* const v = call.v.at(b, g, keys[n]);
    for (int d = 0; d < dim; ++d) out[static_cast<std::size_t>(d)] += p * static_cast<E>(v[d]);
  }
  return lse;
}

/// Attends by a valid plan. Cost: every (row, key) pair is looked at.
template <class T>
void reference_attend(attention_call<T, host> const& call, near_field const& near, mask limit,
                      plan_view<host> const& plan) {
  attention_shape const& shape = call.shape;
  for (int b = 0; b < shape.batch; ++b) {
    sequence_extent const extent = extent_of(shape, call.in, b);
    for (int h = 0; h < shape.q_heads; ++h) {
      for (int i = 0; i < shape.q_tokens; ++i) {
        std::vector<int> keys;
        if (i < extent.q_tokens) {
          auto const listed = reference_list(plan, b, i / plan.chunk_rows, h / shape.group());
          for (int j = 0; j < extent.kv_tokens; ++j) {
            if (reference_sees(plan.rows_at(b, h)[i], near, limit, extent.position(i),
                               extent.kv_tokens, listed, j)) {
              keys.push_back(j);
            }
          }
        }
        std::vector<exact_t<T>> out;
        auto const lse = reference_row(call, b, h, i, keys, out);
        for (int d = 0; d < shape.dim; ++d) {
          *call.out.at(b, h, i, d) =
              static_cast<T>(static_cast<accumulator_t<T>>(out[static_cast<std::size_t>(d)]));
        }
        if (!call.lse.is_null()) call.lse(b, h, i) = static_cast<accumulator_t<T>>(lse);
      }
    }
  }
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
