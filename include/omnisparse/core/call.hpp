/// @file
/// One attention call as a value, the policies as a value, and the checks that every backend
/// shares.
#pragma once

#include <omnisparse/core/crossover.hpp>
#include <omnisparse/core/dtype.hpp>
#include <omnisparse/core/near_field.hpp>
#include <omnisparse/core/policy.hpp>
#include <omnisparse/core/shape.hpp>
#include <omnisparse/core/softmax_scale.hpp>
#include <omnisparse/core/status.hpp>

namespace omnisparse {

/// The policies of a functor, one for each role, and the options that are no policies.
template <class Selector, class Rescue, class Scorer, class Budget, class Storer, class Fetcher>
struct policy_set {
  Selector selector = {};
  Rescue rescue = {};
  Scorer scorer = {};
  Budget budget = {};
  Storer storer = {};    ///< which tokens stay in the cache
  Fetcher fetcher = {};  ///< which heads read the stored tokens
  near_field near = {};
  mask limit = mask::causal;
  chunk rows = {};  ///< rows per list
  softmax_scale scale = {};
  crossover below = crossover::never;  ///< of calls too short to plan
};

/// Where the log-sum-exp of each row goes: [batch, q_heads, q_tokens], nats, in the accumulator
/// type of T. A null view means that it is not wanted.
template <class T, class Space = host>
using lse_view = tensor_view<accumulator_t<T>, Space, 3>;

/// The tensors of one call. `out` and `lse` are null while planning; `lse` may always be.
template <class T, class Space>
struct attention_call {
  using element_type = T;
  attention_shape shape = {};
  tensor_view<T const, Space> q = {};  ///< [batch, q_heads, q_tokens, dim]
  tensor_view<T const, Space> k = {};  ///< [batch, kv_heads, kv_tokens, dim]
  tensor_view<T const, Space> v = {};  ///< [batch, kv_heads, kv_tokens, dim]
  tensor_view<T, Space> out = {};      ///< as q
  lse_view<T, Space> lse = {};         ///< [batch, q_heads, q_tokens], nats
  inputs<Space> in = {};
  softmax_scale scale = {};
};

namespace detail {

inline constexpr status shape_refusal(char const* why) noexcept {
  return {status_code::invalid_shape, why};
}

// Extents that make sense by themselves.
constexpr status check_shape(attention_shape const& s) noexcept {
  if (s.batch < 0 || s.q_heads < 0 || s.kv_heads < 0 || s.q_tokens < 0 || s.kv_tokens < 0) {
    return shape_refusal("omnisparse: an extent of the shape is negative: give counts >= 0");
  }
  if (s.kv_heads == 0 || s.q_heads % s.kv_heads != 0) {
    return shape_refusal(
        "omnisparse: q [B, Hq, Nq, D] and k [B, Hkv, Nkv, D]: Hq must be a "
        "multiple of Hkv >= 1: repeat or drop heads");
  }
  if (s.dim <= 0) return shape_refusal("omnisparse: the head dimension D must be at least 1");
  return {};
}

// Options that make sense by themselves.
template <class Policies>
constexpr status check_options(Policies const& p) noexcept {
  if (p.near.window < 0 || p.near.sinks < 0) {
    return {status_code::invalid_option,
            "omnisparse: near_field counts tokens: window and sinks must be >= 0"};
  }
  if (p.rows.rows < 0) {
    return {status_code::invalid_option,
            "omnisparse: chunk counts query rows: it must be >= 0, 0 for the whole call"};
  }
  if (!(p.scale.value >= 0 && p.scale.value <= 1e30)) {
    return {status_code::invalid_option,
            "omnisparse: softmax_scale is the factor on q . k, in (0, 1e30], or 0 for 1 / sqrt D; "
            "for a "
            "negative one negate q"};
  }
  auto const sound = [](far_estimate const& e) {
    return e.block >= 1 && e.block <= 1 << 20 && e.per_level >= 1 && e.per_level <= 1 << 20 &&
           e.variance_weight >= 0.f;
  };
  if (!sound(estimate_of(p.selector)) || !sound(estimate_of(p.rescue))) {
    return {status_code::invalid_option,
            "omnisparse: far_estimate needs block and per_level in [1, 2^20] and a variance_weight "
            ">= 0"};
  }
  if (first_of(p.selector) < 1 || first_of(p.fetcher) < 1) {
    return {status_code::invalid_option,
            "omnisparse: the sink of a contrast is made of 'first' >= 1 keys"};
  }
  float const recall = recall_of(p.budget);
  if (!(recall >= 0.f && recall <= 1.f)) {
    return {status_code::invalid_option, "omnisparse: a budget's recall is a share in [0, 1]"};
  }
  return {};
}

template <class V>
constexpr bool has_extents(V const& view, int a, int b, int c, int d) noexcept {
  return view.extent(0) == a && view.extent(1) == b && view.extent(2) == c && view.extent(3) == d;
}

template <class V>
constexpr bool is_readable(V const& view) noexcept {
  return view.size() == 0 || (!view.is_null() && view.stride(V::rank - 1) == 1);
}

// Views that fit the shape. `writes` calls need v and out; planning needs neither.
template <class T, class Space>
constexpr status check_call(attention_call<T, Space> const& c, bool writes) noexcept {
  attention_shape const& s = c.shape;
  if (status const bad = check_shape(s); !bad.ok()) return bad;
  if (!has_extents(c.k, s.batch, s.kv_heads, s.kv_tokens, s.dim)) {
    return shape_refusal(
        "omnisparse: k must be [B, Hkv, Nkv, D] with the B and D of q "
        "[B, Hq, Nq, D]");
  }
  if (writes && !has_extents(c.v, s.batch, s.kv_heads, s.kv_tokens, s.dim)) {
    return shape_refusal("omnisparse: v must have the shape of k [B, Hkv, Nkv, D]");
  }
  if (writes && !has_extents(c.out, s.batch, s.q_heads, s.q_tokens, s.dim)) {
    return shape_refusal("omnisparse: out must have the shape of q [B, Hq, Nq, D]");
  }
  if (!c.lse.is_null() && (c.lse.extent(0) != s.batch || c.lse.extent(1) != s.q_heads ||
                           c.lse.extent(2) != s.q_tokens)) {
    return shape_refusal("omnisparse: lse must be [B, Hq, Nq] as q [B, Hq, Nq, D] says");
  }
  if ((!c.in.q_lengths.is_null() && c.in.q_lengths.extent(0) != s.batch) ||
      (!c.in.kv_lengths.is_null() && c.in.kv_lengths.extent(0) != s.batch)) {
    return shape_refusal("omnisparse: q_lengths and kv_lengths must be [B]: one count a sequence");
  }
  if (!c.in.segments.is_null() &&
      (c.in.segments.extent(0) != s.batch || c.in.segments.extent(1) != s.kv_tokens)) {
    return shape_refusal("omnisparse: segments must be [B, Nkv]: one for each key");
  }
  if (!is_readable(c.q) || !is_readable(c.k) ||
      (writes && (!is_readable(c.v) || !is_readable(c.out)))) {
    return {status_code::invalid_view,
            "omnisparse: q, k, v and out need memory and a contiguous last dimension (stride 1): "
            "copy into such a layout"};
  }
  return {};
}

inline constexpr status workspace_refusal() noexcept {
  return {status_code::workspace_too_small,
          "omnisparse: the workspace is too small: give at least workspace_bytes(shape) bytes, "
          "counted for this dtype and thread count"};
}

}  // namespace detail
}  // namespace omnisparse
