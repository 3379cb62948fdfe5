/// @file
/// One attention call as a value, the policies as a value, and the checks that every backend
/// shares.
#pragma once

#include <omnisparse/core/check_shape.hpp>
#include <omnisparse/core/crossover.hpp>
#include <omnisparse/core/dtype.hpp>
#include <omnisparse/core/near_field.hpp>
#include <omnisparse/core/overlap.hpp>
#include <omnisparse/core/policy.hpp>
#include <omnisparse/core/shape.hpp>
#include <omnisparse/core/softmax_scale.hpp>
#include <omnisparse/core/status.hpp>

#include <concepts>
#include <initializer_list>

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
/// type of T. Any strides by which no two elements coincide. A default-made view means that it is
/// not wanted.
template <class T, class Space = host>
using lse_view = tensor_view<accumulator_t<T>, Space, 3>;

/// The tensors of one call. While planning, when `writes` is false, there are no v, out and lse;
/// `lse` may always be null. Whether v is null says nothing: that of no keys may be.
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
  bool writes = true;  ///< attends: v and out are given, if empty
};

namespace detail {
inline namespace OMNISPARSE_TARGET {

// The sentence that a policy has about its own options; null where it has none, or no say.
template <class P>
constexpr char const* refusal_of(P const& policy) noexcept {
  if constexpr (tells_refusal<P>) return policy.refuses();
  else return nullptr;
}

// Options by which the library itself measures what a policy observes, whoever wrote the policy.
template <class P>
constexpr char const* contrast_refusal(P const& policy) noexcept {
  if constexpr (!std::same_as<observed<P>, observation::sink_and_mean>) return nullptr;
  if (first_of(policy) < 1) {
    return "omnisparse: the sink of a contrast is made of 'first' >= 1 keys";
  }
  pool_range const range = range_of(policy);
  if (range != pool_range::whole_call && range != pool_range::past) {
    return "omnisparse: a contrast pools pool_range::whole_call or pool_range::past";
  }
  return nullptr;
}

template <class P>
constexpr char const* reach_refusal(P const& policy) noexcept {
  if constexpr (std::same_as<observed<P>, observation::nothing>) return nullptr;
  if (!is_up_to(recall_of(policy), 1.f)) {
    return "omnisparse: a budget's recall is a share in [0, 1]";
  }
  flatness_by const by = flatness_of(policy);
  if (by != flatness_by::simpson && by != flatness_by::top_share && by != flatness_by::entropy) {
    return "omnisparse: a budget's flatness is flatness_by::simpson, top_share or entropy";
  }
  return nullptr;
}

// The first sentence of or about the policies, or null.
template <class Policies>
constexpr char const* policy_refusal(Policies const& p) noexcept {
  for (char const* const why :
       {estimate_of(p.selector).refuses(), estimate_of(p.rescue).refuses(),
        contrast_refusal(p.selector), contrast_refusal(p.fetcher), reach_refusal(p.budget),
        refusal_of(p.selector), refusal_of(p.rescue), refusal_of(p.scorer), refusal_of(p.budget),
        refusal_of(p.storer), refusal_of(p.fetcher)}) {
    if (why != nullptr) return why;
  }
  return nullptr;
}

// Options that make sense by themselves: of the functor, and of the policy in every seat.
template <class Policies>
constexpr status check_options(Policies const& p) noexcept {
  if (status const bad = check_near(p.near, p.limit); !bad.ok()) return bad;
  if (p.rows.rows < 0) {
    return {status_code::invalid_option,
            "omnisparse: chunk counts query rows: it must be >= 0, 0 for the whole call"};
  }
  if (p.below != crossover::never && p.below != crossover::measured) {
    return {status_code::invalid_option,
            "omnisparse: crossover is crossover::never or crossover::measured: choose one of them"};
  }
  if (!is_up_to(p.scale.value, 1e30)) {
    return {status_code::invalid_option,
            "omnisparse: softmax_scale is the factor on q . k, in (0, 1e30], or 0 for 1 / sqrt D; "
            "for a negative one negate q"};
  }
  char const* const why = policy_refusal(p);
  return why == nullptr ? status{} : status{status_code::invalid_option, why};
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
  if (c.lse.is_given() && (c.lse.extent(0) != s.batch || c.lse.extent(1) != s.q_heads ||
                           c.lse.extent(2) != s.q_tokens)) {
    return shape_refusal("omnisparse: lse must be [B, Hq, Nq] as q [B, Hq, Nq, D] says");
  }
  if (status const bad = check_inputs(c.in, s); !bad.ok()) return bad;
  if (status const bad = check_optional(c.lse); !bad.ok()) return bad;
  if (!is_readable(c.q) || !is_readable(c.k) ||
      (writes && (!is_readable(c.v) || !is_readable(c.out)))) {
    return {status_code::invalid_view,
            "omnisparse: q, k, v and out need memory and a contiguous last dimension (stride 1): "
            "copy into such a layout"};
  }
  if (!strides_fit(c.q) || !strides_fit(c.k) || !strides_fit(c.v) || !strides_fit(c.out)) {
    return stride_refusal();
  }
  return {};
}

// What a call reads of its tensors.
template <class T, class Space>
void add_reads(memory_of_call& memory, attention_call<T, Space> const& c) noexcept {
  memory.reads(c.q);
  memory.reads(c.k);
  memory.reads(c.v);
  memory.reads(c.in.q_lengths);
  memory.reads(c.in.kv_lengths);
  memory.reads(c.in.segments);
}

inline constexpr char const* out_is_shared =
    "omnisparse: an element of out or lse is written twice, or is one of q, k, v, the lengths, "
    "segments or sequences, the plan or the cache: give each output elements of its own";

inline constexpr status workspace_refusal() noexcept {
  return {status_code::workspace_too_small,
          "omnisparse: the workspace is too small: give at least workspace_bytes(shape) bytes, "
          "counted for this dtype and thread count"};
}

}  // namespace OMNISPARSE_TARGET
}  // namespace detail
}  // namespace omnisparse
