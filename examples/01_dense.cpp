// Dense causal attention with grouped-query heads: the fair baseline, and the smallest program.
#include <omnisparse/attention.hpp>

#include <cstdio>
#include <vector>

int main() {
  using namespace omnisparse;
  attention_shape const shape{
      .batch = 1, .q_heads = 8, .kv_heads = 2, .q_tokens = 512, .kv_tokens = 512, .dim = 64};
  std::vector<float> q(8 * 512 * 64, 0.1f), k(2 * 512 * 64, 0.2f), v(2 * 512 * 64, 0.3f);
  std::vector<float> out(q.size()), lse(8 * 512);

  auto const attend = attention{backend::cpu{}};
  workspace<> memory(attend.workspace_bytes(shape));  // once; a call allocates nothing
  or_throw(attend(tensor_view(q.data(), {1, 8, 512, 64}), tensor_view(k.data(), {1, 2, 512, 64}),
                  tensor_view(v.data(), {1, 2, 512, 64}), tensor_view(out.data(), {1, 8, 512, 64}),
                  tensor_view(lse.data(), {1, 8, 512}), memory));
  std::printf("out[0] %.3f (all values are 0.3), lse of the last row %.3f\n",
              static_cast<double>(out[0]), static_cast<double>(lse.back()));
  return out[0] > 0.299f && out[0] < 0.301f ? 0 : 1;
}
