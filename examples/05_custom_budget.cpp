// A budget of your own: the flattest head's reach for every head, as published, but never more than
// a cap. It sees all heads, so that one number can serve them all.
#include <omnisparse/presets.hpp>
#include <omnisparse/testing/random.hpp>

#include <cstdio>

namespace mine {
using namespace omnisparse;
/// The flattest head's reach for every head, but never more than `most` tokens.
struct capped_flattest {
  using observes = observation::all_reaches;
  float recall = 0.95f;
  int most = 8192;
  OMNISPARSE_HD constexpr int tokens(observes seen, kv_extent) const noexcept {
    return seen.reach[seen.flattest] < most ? seen.reach[seen.flattest] : most;
  }
};
}  // namespace mine

int main() {
  using namespace omnisparse;
  attention_shape const shape{
      .batch = 1, .q_heads = 4, .kv_heads = 2, .q_tokens = 1024, .kv_tokens = 1024, .dim = 64};
  auto const t = testing::random_tensors<float>(shape, 3);
  int worst = 0;
  for (float const recall : {0.5f, 0.8f, 0.95f}) {
    auto const attend = presets::local_first(backend::cpu{}, shape.kv_tokens)
                            .with(mine::capped_flattest{.recall = recall, .most = 300});
    workspace<> memory(attend.workspace_bytes(shape));
    auto const plan = attend.make_plan(shape);
    or_throw(attend.plan(t.q_view(), t.k_view(), plan, memory));
    plan_summary const sum = summarize(plan, attend.policies().near, mask::causal);
    std::printf("recall wanted %.2f: %.0f tokens a list, recall estimated %.3f\n",
                static_cast<double>(recall), sum.kept, sum.recall);
    worst = larger(worst, static_cast<int>(sum.kept));
  }
  return worst <= 300 ? 0 : 1;
}
