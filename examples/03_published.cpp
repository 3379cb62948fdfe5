// The composition of the published figure, seat by seat, and what its classifier decides.
#include <omnisparse/presets.hpp>
#include <omnisparse/testing/random.hpp>

#include <cstdio>

int main() {
  using namespace omnisparse;
  attention_shape const shape{
      .batch = 1, .q_heads = 4, .kv_heads = 2, .q_tokens = 512, .kv_tokens = 512, .dim = 32};
  auto const t = testing::random_tensors<float>(shape, 2);
  std::vector<float> out(t.q.size());

  // What presets::published(backend::cpu{}) puts together, written out:
  auto const attend = attention{backend::cpu{}}
                          .with(selector::sink_contrast{.tau = 0.5f})
                          .with(budget::flattest_head{.recall = 0.95f})
                          .with(slim::kept_tokens{})
                          .with(slim::head_fetch{.threshold = 0.5f});
  workspace<> memory(attend.workspace_bytes(shape));
  auto const plan = attend.make_plan(shape);
  or_throw(attend.plan(t.q_view(), t.k_view(), plan, memory));
  or_throw(attend.run(t.q_view(), t.k_view(), t.v_view(), plan,
                      tensor_view(out.data(), {1, 4, 512, 32}), memory));
  plan_summary const sum = summarize(plan, attend.policies().near, mask::causal);
  std::printf("%s", to_string(sum).c_str());

  // A lazy row has no near field here: its output is zero, and the residual stream carries it on.
  int zeros = 0, lazy = 0;
  for (int i = 0; i < 512; ++i) {
    if (plan.view().rows_at(0, 0)[i] != row_class::lazy) continue;
    ++lazy;
    zeros += out[static_cast<std::size_t>(i) * 32] == 0.f;
  }
  std::printf("head 0: %d lazy rows, %d of them output zero\n", lazy, zeros);
  return zeros == lazy ? 0 : 1;
}
