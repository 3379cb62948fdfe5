// The selector of 04_custom_selector.cpp, unchanged, in a CUDA kernel.
#include "common/far_or_strided.hpp"
#include "common/gpu.cuh"

#include <omnisparse/presets.hpp>
#include <omnisparse/testing/random.hpp>

int main() {
  using namespace omnisparse;
  if (!gpu::is_here()) return 77;
  attention_shape const shape{
      .batch = 1, .q_heads = 4, .kv_heads = 2, .q_tokens = 1024, .kv_tokens = 1024, .dim = 64};
  auto const t = testing::random_tensors<bfloat16>(shape, 3);
  gpu::tensor<bfloat16> const q({1, 4, 1024, 64}, t.q), k({1, 2, 1024, 64}, t.k);
  auto const local =
      presets::local_first(backend::cuda{}, shape.kv_tokens, {.below = crossover::never});
  auto const attend = local.with(mine::far_or_strided{.epsilon = 1.f, .stride = 32});
  workspace<device> const memory(attend.workspace_bytes<bfloat16>(shape));
  auto const plan = attend.make_plan(shape);
  or_throw(attend.plan(q.view, k.view, plan, memory));
  plan_summary const sum = summarize(gpu::on_host(plan), attend.policies().near, mask::causal);
  std::printf("active rows: %.4f, one in 32 is %.4f\n", sum.active, 1.0 / 32);
  return sum.active == 1.0 / 32 ? 0 : 1;
}
