// What a functor can be told beside its policies, and how it answers: scale, threads, when it runs
// dense, and a refusal.
#include <omnisparse/presets.hpp>
#include <omnisparse/testing/random.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

int main() {
  using namespace omnisparse;
  attention_shape const shape{
      .batch = 1, .q_heads = 2, .kv_heads = 1, .q_tokens = 300, .kv_tokens = 300, .dim = 20};
  auto const t = testing::random_tensors<float>(shape, 1);
  std::vector<float> out(t.q.size()), padded_out(2 * 300 * 24);
  auto const preset = presets::local_first(backend::cpu{}, shape.kv_tokens).with(threads{1});
  std::printf("%d tokens run %s\n", shape.kv_tokens, preset.runs_dense(shape) ? "dense" : "sparse");

  // Heads of 20 elements as they are, and padded to 24 with the scale of 20: the same attention.
  auto const pad = [](std::vector<float> const& from) {
    std::vector<float> to(from.size() / 20 * 24, 0.f);
    for (std::size_t n = 0; n < from.size(); ++n) to[n / 20 * 24 + n % 20] = from[n];
    return to;
  };
  std::vector<float> const q = pad(t.q), k = pad(t.k), v = pad(t.v);
  tensor_view const qs(q.data(), {1, 2, 300, 24}), ks(k.data(), {1, 1, 300, 24}),
      vs(v.data(), {1, 1, 300, 24});
  auto const attend = preset.with(crossover::never);
  auto const scaled = attend.with(softmax_scale{1 / std::sqrt(20.0)});
  workspace<> memory(
      std::max(attend.workspace_bytes(shape), scaled.workspace_bytes({1, 2, 1, 300, 300, 24})));
  or_throw(
      attend(t.q_view(), t.k_view(), t.v_view(), tensor_view(out.data(), {1, 2, 300, 20}), memory));
  or_throw(scaled(qs, ks, vs, tensor_view(padded_out.data(), {1, 2, 300, 24}), memory));
  float worst = 0;
  for (std::size_t n = 0; n < out.size(); ++n) {
    worst = std::max(worst, std::fabs(out[n] - padded_out[n / 20 * 24 + n % 20]));
  }
  std::printf("largest difference of padded heads: %g\n", static_cast<double>(worst));

  // Nothing is written where something is wrong.
  std::vector<float> in_place = q;
  tensor_view const x(in_place.data(), {1, 2, 300, 24});
  status const refused = scaled(x, ks, vs, x, memory);
  std::printf("%s\n", refused.message);
  return worst < 1e-5f && !refused.ok() && in_place == q ? 0 : 1;
}
