// Sparse attention on the GPU: plan and attend in one call; then the plan apart, copied to the host
// to be looked at, and run again by the stages.
#include "common/gpu.cuh"

#include <omnisparse/presets.hpp>
#include <omnisparse/testing/random.hpp>

#include <algorithm>
#include <cmath>

int main() {
  using namespace omnisparse;
  if (!gpu::is_here()) return 77;
  attention_shape const shape{
      .batch = 1, .q_heads = 6, .kv_heads = 2, .q_tokens = 2048, .kv_tokens = 2048, .dim = 64};
  auto const t = testing::random_tensors<bfloat16>(shape, 1, 3.f);
  gpu::tensor<bfloat16> const q({1, 6, 2048, 64}, t.q), k({1, 2, 2048, 64}, t.k);
  gpu::tensor<bfloat16> const v({1, 2, 2048, 64}, t.v), sparse({1, 6, 2048, 64}),
      staged({1, 6, 2048, 64}), dense({1, 6, 2048, 64});

  auto const full = attention{backend::cuda{}};
  // Two thousand tokens are few: as it comes, the preset would run dense.
  auto const attend =
      presets::local_first(backend::cuda{}, shape.kv_tokens, {.below = crossover::never});
  workspace<device> const memory(
      std::max(full.workspace_bytes<bfloat16>(shape), attend.workspace_bytes<bfloat16>(shape)));
  or_throw(full(q.view, k.view, v.view, dense.view, memory));
  or_throw(attend(q.view, k.view, v.view, sparse.view, memory));

  auto const plan = attend.make_plan(shape);  // on the device: nothing goes through the host
  or_throw(attend.plan(q.view, k.view, plan, memory));
  or_throw(attend.run(q.view, k.view, v.view, plan, staged.view, memory));

  plan_summary const sum = summarize(gpu::on_host(plan), attend.policies().near, mask::causal);
  auto const one = sparse.values(), two = staged.values(), whole = dense.values();
  double error = 0, norm = 0;
  bool same = true;
  for (std::size_t n = 0; n < whole.size(); ++n) {
    double const x = static_cast<double>(one[n]), y = static_cast<double>(whole[n]);
    error += (x - y) * (x - y), norm += y * y;
    same = same && one[n].bits == two[n].bits;
  }
  std::printf("%s\nrelative error %.3f at %.1f %% of the pairs; stage by stage: %s\n",
              to_string(sum).c_str(), std::sqrt(error / norm), 100 * sum.density,
              same ? "the same bits" : "DIFFERENT");
  return same && sum.density < 1 && std::isfinite(error) ? 0 : 1;
}
