/// @file
/// What both units of the program do, each by its own code: compiled twice, with unlike flags.
#pragma once

#include "units.hpp"

#include <omnisparse/presets.hpp>
#include <omnisparse/testing/random.hpp>

#include <cmath>
#include <vector>

namespace {

using namespace omnisparse;

attention_shape const shape{1, 4, 2, 150, 200, 40};

template <class Backend>
auto composed() {
  return attention{Backend{}}
      .with(near_field{20, 2})
      .with(chunk{32})
      .with(selector::far_mass{.epsilon = 0.3f, .estimate = {.block = 16}})
      .with(rescue::coverage{.least = 0.6f})
      .with(budget::flattest_head{.recall = 0.7f, .flatness = flatness_by::top_share})
      .with(slim::kept_tokens{})
      .with(slim::head_fetch{.threshold = 0.5f, .any = false});
}

template <class Backend>
void attend(plan_view<> const& plan, std::vector<float>& out) {
  auto const t = testing::random_tensors<float>(shape, 3, 1.5f);
  auto const a = composed<Backend>();
  workspace<> memory(a.workspace_bytes(shape) + 256);
  out.resize(t.q.size() + 4 * 40);
  tensor_view<float> const outs(out.data(), {1, 4, 150, 40});
  or_throw(a.run(t.q_view(), t.k_view(), t.v_view(), plan, outs, memory));
  kv_cache<Backend, float> cache({.kv_heads = 2, .dim = 40, .max_tokens = 300, .page_tokens = 48});
  int id = 0;
  or_throw(cache.add(id));
  or_throw(a.slim(t.k_view(), t.v_view(), plan, cache, id));
  workspace<> step(a.decode_workspace_bytes(cache, 1, 4) + 256);
  tensor_view<float const> const q(t.q.data(), {1, 4, 1, 40}, {0, 150 * 40, 40, 1});
  tensor_view<float> const row(out.data() + t.q.size(), {1, 4, 1, 40});
  or_throw(a.decode(q, cache, row, step));
}

unit_report report(std::string& plan_bytes) {
  unit_report r;
  r.lanes = cpu::lanes<float>;
  r.workspace = composed<backend::cpu>().workspace_bytes(shape);
  r.code = reinterpret_cast<void const*>(&cpu::thread_count);
  auto const t = testing::random_tensors<float>(shape, 3, 1.5f);
  attention_plan<> plan = composed<backend::cpu>().make_plan(shape);
  if (plan_bytes.empty()) {
    workspace<> memory(r.workspace);
    or_throw(composed<backend::cpu>().plan(t.q_view(), t.k_view(), plan, memory));
    plan_bytes = to_bytes(plan);
  } else {
    or_throw(from_bytes(plan_bytes, plan));
  }
  r.density = summarize(plan, near_field{20, 2}, mask::causal).density;
  std::vector<float> fast, slow;
  attend<backend::cpu>(plan, fast);
  attend<backend::reference>(plan, slow);
  for (std::size_t n = 0; n < fast.size(); ++n) {
    r.worst = std::fmax(r.worst, std::fabs(fast[n] - slow[n]));
  }
  return r;
}

}  // namespace
