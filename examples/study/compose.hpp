/// @file
/// From the command line to a functor, on any backend, and what running it gives.
#pragma once

#include "options.hpp"

#include <omnisparse/presets.hpp>

#include <string>
#include <vector>

namespace study {

using namespace omnisparse;

/// q [B, Hq, Nq, D], k and v [B, Hkv, Nkv, D], contiguous.
template <class T>
struct tensors {
  attention_shape shape;
  std::vector<T> q, k, v;
};

/// A plan, and what attention by it gave.
template <class T>
struct outcome {
  attention_plan<host> plan;
  near_field near;
  mask limit;
  std::vector<T> out;      ///< [B, Hq, Nq, D]
  std::vector<float> lse;  ///< [B, Hq, Nq], nats
  double plan_seconds = 0, attend_seconds = 0;
};

/// How the plan of a run comes about.
enum class planning : unsigned char { by_policies, everything, given };

/// Makes every row see everything: what dense attention means as a plan.
inline void fill_dense(plan_view<host> const& plan) {
  for (std::int64_t n = 0; n < plan.row_count(); ++n) plan.rows[n] = row_class::rescued;
  for (std::int64_t n = 0; n < plan.list_count(); ++n) plan.recalls[n] = 1.f;
}

/// Puts the command line's near field, mask, chunk and scale on top of a policy.
template <class Attention>
Attention with_frame(Attention const& attend, options const& o) {
  near_field near = attend.policies().near;
  if (o.window) near.window = *o.window;
  if (o.sinks) near.sinks = *o.sinks;
  auto a = attend.with(near).with(o.mask == "full" ? mask::full : mask::causal);
  if (o.chunk) a = a.with(chunk{*o.chunk});
  if (o.scale) a = a.with(softmax_scale{*o.scale});
  return a;
}

/// Puts the command line's budget in the place of a policy's own, which has this recall, and calls
/// use(attend, planning).
template <class Attention, class Use>
void with_budget(Attention const& attend, options const& o, float own_recall, Use const& use) {
  auto const a = with_frame(attend, o);
  planning const by = planning::by_policies;
  std::string const budget = o.budget.value_or("own");
  float const recall = o.recall.value_or(own_recall);
  if (budget == "flattest") return use(a.with(budget::flattest_head{.recall = recall}), by);
  if (budget == "guaranteed") return use(a.with(budget::guaranteed{.recall = recall}), by);
  if (budget == "per-head") return use(a.with(budget::per_head{.recall = recall}), by);
  if (budget == "fixed") return use(a.with(budget::fixed{.count = o.tokens.value_or(256)}), by);
  if (budget == "ratio") return use(a.with(budget::ratio{.share = o.share.value_or(0.1f)}), by);
  if (budget == "dense") return use(a.with(budget::dense{}), by);
  use(a, by);
}

/// Calls use(attend, planning) with the functor that the command line describes. Every option that
/// was given is heeded (`check_heeded`); with a given plan, its near field, mask and chunk are
/// among them.
template <class Backend, class Use>
void compose(Backend backend, options const& o, int kv_tokens, Use const& use) {
  auto const dense = attention{backend};
  if (o.plan_in) return use(with_frame(dense, o), planning::given);
  std::string const policy = o.policy_name();
  if (policy == "dense") return use(with_frame(dense, o), planning::everything);
  if (policy == "band") {
    int const window = clamped(kv_tokens / 64, 256, 1024);
    return use(with_frame(dense.with(near_field{.window = window, .sinks = 4})
                              .with(selector::none{})
                              .with(budget::fixed{.count = 0}),
                          o),
               planning::by_policies);
  }
  if (policy == "published") {
    presets::published_options own;
    own.tau = o.tau.value_or(own.tau);
    own.recall = o.recall.value_or(own.recall);
    return with_budget(presets::published(backend, own), o, own.recall, use);
  }
  presets::local_first_options own;
  own.epsilon = o.epsilon.value_or(own.epsilon);
  own.least = o.least.value_or(own.least);
  own.recall = o.recall.value_or(own.recall);
  with_budget(presets::local_first(backend, kv_tokens, own), o, own.recall, use);
}

}  // namespace study
