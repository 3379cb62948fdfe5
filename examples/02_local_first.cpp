// Sparse attention for a model that was not trained for it: plan and attend in one call, then the
// plan apart, to see what it saves and how close the result is.
#include <omnisparse/presets.hpp>
#include <omnisparse/testing/random.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>

int main() {
  using namespace omnisparse;
  attention_shape const shape{
      .batch = 1, .q_heads = 6, .kv_heads = 2, .q_tokens = 2048, .kv_tokens = 2048, .dim = 64};
  auto const t = testing::random_tensors<float>(shape, 1, 3.f);
  std::vector<float> sparse(t.q.size()), dense(t.q.size());
  tensor_view const sparse_out(sparse.data(), {1, 6, 2048, 64}),
      dense_out(dense.data(), {1, 6, 2048, 64});

  auto const full = attention{backend::cpu{}};
  // Two thousand tokens are few: as it comes, the preset would run dense.
  auto const attend =
      presets::local_first(backend::cpu{}, shape.kv_tokens, {.below = crossover::never});
  workspace<> memory(std::max(full.workspace_bytes(shape), attend.workspace_bytes(shape)));
  or_throw(full(t.q_view(), t.k_view(), t.v_view(), dense_out, memory));
  or_throw(attend(t.q_view(), t.k_view(), t.v_view(), sparse_out, memory));

  auto const plan = attend.make_plan(shape);
  or_throw(attend.plan(t.q_view(), t.k_view(), plan, memory));
  plan_summary const sum = summarize(plan, attend.policies().near, mask::causal);
  double error = 0, norm = 0;
  for (std::size_t n = 0; n < dense.size(); ++n) {
    double const off = static_cast<double>(sparse[n]) - static_cast<double>(dense[n]);
    error += off * off, norm += static_cast<double>(dense[n]) * static_cast<double>(dense[n]);
  }
  std::printf("%s\nrelative error %.3f at %.1f %% of the pairs\n", to_string(sum).c_str(),
              std::sqrt(error / norm), 100 * sum.density);
  return sum.density < 1 && std::isfinite(error) ? 0 : 1;
}
