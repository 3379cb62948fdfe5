// A selector of your own: eight lines, no registration. It says what it looks at, and only that is
// measured; it answers one question, here for the CPU loop, later for a CUDA kernel.
#include <omnisparse/presets.hpp>
#include <omnisparse/testing/random.hpp>

#include <cstdio>

namespace mine {
using namespace omnisparse;
/// Looks far where more than `epsilon` of the mass is out of sight, and on every `stride`-th row
/// anyway.
struct far_or_strided {
  using observes = observation::near_and_far;
  float epsilon = 0.05f;
  int stride = 64;
  OMNISPARSE_HD constexpr bool keeps(observes seen, query_row row) const noexcept {
    return seen.far_mass > epsilon || row.position % stride == 0;
  }
};
// A policy is a value: test it by plain numbers.
static_assert(far_or_strided{}.keeps({.lse_near = 9.f, .lse_far = 0.f, .far_mass = 1e-4f},
                                     {128, 0}));
static_assert(!far_or_strided{}.keeps({.lse_near = 9.f, .lse_far = 0.f, .far_mass = 1e-4f},
                                      {129, 0}));
}  // namespace mine

int main() {
  using namespace omnisparse;
  attention_shape const shape{
      .batch = 1, .q_heads = 4, .kv_heads = 2, .q_tokens = 1024, .kv_tokens = 1024, .dim = 64};
  auto const t = testing::random_tensors<float>(shape, 3);
  auto const local = presets::local_first(backend::cpu{}, shape.kv_tokens);
  auto const attend = local.with(mine::far_or_strided{.epsilon = 1.f, .stride = 32});
  workspace<> memory(attend.workspace_bytes(shape));
  auto const plan = attend.make_plan(shape);
  or_throw(attend.plan(t.q_view(), t.k_view(), plan, memory));
  double const active = summarize(plan, attend.policies().near, mask::causal).active;
  std::printf("active rows: %.4f, one in 32 is %.4f\n", active, 1.0 / 32);
  return active == 1.0 / 32 ? 0 : 1;
}
