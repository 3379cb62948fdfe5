// A selector of your own: eight lines, no registration. It says what it looks at, and only that is
// measured; it answers one question, here for the CPU loop, in 10_custom_selector_cuda.cu for a
// CUDA kernel.
#include "common/far_or_strided.hpp"

#include <omnisparse/presets.hpp>
#include <omnisparse/testing/random.hpp>

#include <cstdio>

int main() {
  using namespace omnisparse;
  attention_shape const shape{
      .batch = 1, .q_heads = 4, .kv_heads = 2, .q_tokens = 1024, .kv_tokens = 1024, .dim = 64};
  auto const t = testing::random_tensors<float>(shape, 3);
  auto const local =
      presets::local_first(backend::cpu{}, shape.kv_tokens, {.below = crossover::never});
  auto const attend = local.with(mine::far_or_strided{.epsilon = 1.f, .stride = 32});
  workspace<> memory(attend.workspace_bytes(shape));
  auto const plan = attend.make_plan(shape);
  or_throw(attend.plan(t.q_view(), t.k_view(), plan, memory));
  double const active = summarize(plan, attend.policies().near, mask::causal).active;
  std::printf("active rows: %.4f, one in 32 is %.4f\n", active, 1.0 / 32);
  return active == 1.0 / 32 ? 0 : 1;
}
