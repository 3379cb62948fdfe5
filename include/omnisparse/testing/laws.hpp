/// @file
/// Laws that every composition of policies keeps on every backend, free of any test framework. Each
/// returns nullptr, or the sentence that names the broken law.
#pragma once

#include <omnisparse/attention.hpp>
#include <omnisparse/testing/error.hpp>
#include <omnisparse/testing/random.hpp>

#include <initializer_list>
#include <vector>

namespace omnisparse::testing {

/// The outputs of one call.
template <class T>
struct result {
  std::vector<T> out;
  std::vector<accumulator_t<T>> lse;
  tensor_view<T> out_view;
  lse_view<T> lses;

  explicit result(attention_shape const& s)
      : out(static_cast<std::size_t>(s.batch) * static_cast<std::size_t>(s.q_heads) *
            static_cast<std::size_t>(s.q_tokens) * static_cast<std::size_t>(s.dim)),
        lse(out.size() / static_cast<std::size_t>(s.dim)) {
    // NaN bits: what a call leaves unwritten is seen.
    for (T& x : out) x = static_cast<T>(__builtin_nanf(""));
    for (auto& x : lse) x = static_cast<accumulator_t<T>>(__builtin_nanf(""));
    out_view = {out.data(), {s.batch, s.q_heads, s.q_tokens, s.dim}};
    lses = {lse.data(), {s.batch, s.q_heads, s.q_tokens}};
  }
  result(result const&) = delete;
};

/// Planning gives a valid plan; planning twice gives the same plan; text stays; lists and row
/// classes of what does not exist are empty and lazy.
template <class T, class Attention>
char const* plan_is_valid(Attention const& attend, tensors<T> const& t,
                          inputs<host> const& in = {}) {
  workspace<> memory(attend.template workspace_bytes<T>(t.shape));
  auto const one = attend.make_plan(t.shape), two = attend.make_plan(t.shape);
  if (!attend.plan(t.q_view(), t.k_view(), one, memory, in).ok() ||
      !attend.plan(t.q_view(), t.k_view(), two, memory, in).ok()) {
    return "planning a legal call is refused";
  }
  if (!check_plan(one, t.shape).ok()) return "a plan is not valid: unsorted or out of range";
  if (to_bytes(one) != to_bytes(two)) return "planning twice gives two plans";
  auto const plan = one.view();
  for (int b = 0; b < t.shape.batch; ++b) {
    auto const extent = extent_of(t.shape, in, b);
    for (int i = 0; i < t.shape.q_tokens; ++i) {
      int const position = extent.position(i);
      for (int h = 0; h < t.shape.q_heads; ++h) {
        row_class const kind = plan.rows_at(b, h)[i];
        if (i >= extent.q_tokens && kind != row_class::lazy) return "a missing row is not lazy";
        if (i < extent.q_tokens && position >= 0 && !in.segments.is_null() &&
            in.segments(b, position) == segment::text && kind == row_class::lazy) {
          return "a text row is lazy";
        }
      }
    }
  }
  return nullptr;
}

/// `plan` then `run` equals one call that plans, bit by bit.
template <class T, class Attention>
char const* plan_then_run_is_one_call(Attention const& composed, tensors<T> const& t,
                                      inputs<host> const& in = {}) {
  auto const attend = composed.with(crossover::never);
  workspace<> memory(attend.template workspace_bytes<T>(t.shape));
  auto const plan = attend.make_plan(t.shape);
  result<T> one(t.shape), two(t.shape);
  if (!attend(t.q_view(), t.k_view(), t.v_view(), one.out_view, one.lses, memory, in).ok() ||
      !attend.plan(t.q_view(), t.k_view(), plan, memory, in).ok() ||
      !attend.run(t.q_view(), t.k_view(), t.v_view(), plan, two.out_view, two.lses, memory, in)
           .ok()) {
    return "a legal call is refused";
  }
  for (std::size_t n = 0; n < one.out.size(); ++n) {
    float const x = static_cast<float>(one.out[n]), y = static_cast<float>(two.out[n]);
    if (is_nan(x) || is_nan(y) || !(x == y)) {
      return "plan then run differs from one call, or an output is NaN or unwritten";
    }
  }
  for (std::size_t n = 0; n < one.lse.size(); ++n) {
    if (is_nan(one.lse[n]) || is_nan(two.lse[n]) || !(one.lse[n] == two.lse[n]))
      return "the log-sum-exp of plan then run differs from one call's";
  }
  return nullptr;
}

/// With everything kept, or a window over everything, it is dense attention.
template <class T, class Attention>
char const* everything_kept_is_dense(Attention const& attend, tensors<T> const& t) {
  auto const dense = attend.with(selector::all{}).with(budget::dense{}).with(near_field{});
  auto const kept = attend.with(selector::all{}).with(budget::ratio{.share = 1.f});
  auto const wide = attend.with(near_field{.window = larger(t.shape.kv_tokens, t.shape.q_tokens)});
  result<T> a(t.shape), b(t.shape), c(t.shape);
  auto const call = [&](auto const& functor, result<T>& r) {
    workspace<> memory(functor.template workspace_bytes<T>(t.shape));
    return functor(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, memory).ok();
  };
  if (!call(dense, a) || !call(kept, b) || !call(wide, c)) return "a legal call is refused";
  if (!within_rule<T>(compare(b.out, a.out))) return "keeping every token is not dense attention";
  if (!within_rule<T>(compare(c.out, a.out)))
    return "a window over everything is not dense attention";
  return nullptr;
}

/// A larger recall never keeps fewer tokens. `Budget` has a recall.
template <class Budget, class T, class Attention>
char const* more_recall_keeps_more(Attention const& attend, tensors<T> const& t) {
  std::vector<int> before;
  for (float const recall : {0.f, 0.3f, 0.6f, 0.9f, 0.99f, 1.f}) {
    Budget budget{};
    budget.recall = recall;
    auto const a = attend.with(budget);
    workspace<> memory(a.template workspace_bytes<T>(t.shape));
    auto const plan = a.make_plan(t.shape);
    if (!a.plan(t.q_view(), t.k_view(), plan, memory).ok())
      return "planning a legal call is refused";
    auto const view = plan.view();
    std::vector<int> const counts(view.kept_counts, view.kept_counts + view.list_count());
    for (std::size_t n = 0; n < before.size(); ++n) {
      if (counts[n] < before[n]) return "a larger recall keeps fewer tokens";
    }
    before = counts;
  }
  return nullptr;
}

}  // namespace omnisparse::testing
