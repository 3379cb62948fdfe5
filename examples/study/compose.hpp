/// @file
/// From the command line to a functor, on any backend, and what running it gives.
#pragma once

#include "options.hpp"

#include <omnisparse/presets.hpp>

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

/// Puts the command line's near field, mask, chunk and budget on top of a policy, and calls
/// use(attend, planning).
template <class Attention, class Use>
void with_options(Attention attend, options const& o, Use const& use) {
  near_field near = attend.policies().near;
  if (o.window >= 0) near.window = o.window;
  if (o.sinks >= 0) near.sinks = o.sinks;
  auto a = attend.with(near).with(o.mask == "full" ? mask::full : mask::causal);
  if (o.chunk >= 0) a = a.with(chunk{o.chunk});
  planning const by = o.plan_in.empty() ? planning::by_policies : planning::given;
  if (o.policy == "dense") {
    return use(a.with(budget::dense{}), by == planning::given ? by : planning::everything);
  }
  if (o.policy == "band") return use(a.with(budget::fixed{.count = 0}), by);
  if (o.budget == "guaranteed") return use(a.with(budget::guaranteed{.recall = o.recall}), by);
  if (o.budget == "per-head") return use(a.with(budget::per_head{.recall = o.recall}), by);
  if (o.budget == "fixed") return use(a.with(budget::fixed{.count = o.tokens}), by);
  if (o.budget == "ratio") return use(a.with(budget::ratio{.share = o.share}), by);
  if (o.budget == "dense") return use(a.with(budget::dense{}), by);
  if (o.budget == "flattest" || o.policy == "published") {
    return use(a.with(budget::flattest_head{.recall = o.recall}), by);
  }
  use(a, by);
}

/// Calls use(attend, planning) with the functor that the command line describes.
template <class Backend, class Use>
void compose(Backend backend, options const& o, int kv_tokens, Use const& use) {
  if (o.policy == "published") {
    return with_options(presets::published(backend, {.tau = o.tau}), o, use);
  }
  if (o.policy == "local-first") {
    return with_options(
        presets::local_first(backend, kv_tokens, {.epsilon = o.epsilon, .least = o.least}), o, use);
  }
  auto const dense = attention{backend};
  if (o.policy == "band") {
    int const window = clamped(kv_tokens / 64, 256, 1024);
    return with_options(dense.with(near_field{.window = window, .sinks = 4}).with(selector::none{}),
                        o, use);
  }
  with_options(dense, o, use);
}

}  // namespace study
