// A user's program: a policy of eight lines, swapped in by one `.with`.
#include <omnisparse/attention.hpp>

#include <cstdio>
#include <vector>

namespace mine {
/// Every `stride`-th position looks far.
struct every_nth {
  using observes = omnisparse::observation::nothing;
  int stride = 4;
  OMNISPARSE_HD constexpr bool keeps(observes, omnisparse::query_row row) const noexcept {
    return row.position % stride == 0;
  }
};
}  // namespace mine

int main() {
  using namespace omnisparse;
  attention_shape const shape{
      .batch = 1, .q_heads = 2, .kv_heads = 1, .q_tokens = 64, .kv_tokens = 64, .dim = 16};
  std::vector<float> q(2 * 64 * 16, 0.1f), k(64 * 16, 0.2f), v(64 * 16, 0.3f), out(q.size());
  auto const attend =
      attention{backend::cpu{}}.with(near_field{.window = 8}).with(mine::every_nth{});
  workspace<> memory(attend.workspace_bytes(shape));
  auto plan = attend.make_plan(shape);
  tensor_view const qs(q.data(), {1, 2, 64, 16}), ks(k.data(), {1, 1, 64, 16}),
      vs(v.data(), {1, 1, 64, 16}), outs(out.data(), {1, 2, 64, 16});
  or_throw(attend.plan(qs, ks, plan, memory));
  or_throw(attend.run(qs, ks, vs, plan, outs, memory));
  double const active = summarize(plan, attend.policies().near, mask::causal).active;
  std::printf("active %.2f, out %.3f\n", active, static_cast<double>(out[0]));
  return active == 0.25 && out[0] > 0.299f && out[0] < 0.301f ? 0 : 1;
}
