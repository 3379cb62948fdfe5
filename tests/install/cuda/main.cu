// A user's program on the GPU: one include, a policy of eight lines, swapped in by one `.with`.
#include <omnisparse/attention.hpp>
#include <omnisparse/presets.hpp>

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
  constexpr int heads = 2, tokens = 256, dim = 64;
  attention_shape const shape{1, heads, 1, tokens, tokens, dim};
  auto const attend = presets::local_first(backend::cuda{}, tokens,
                                           {.window = 32, .least = 0.f, .below = crossover::never})
                          .with(mine::every_nth{});
  if (status const can = attend.can_run<bfloat16>(shape); !can.ok()) {
    std::printf("skipped: %s\n", can.message);
    return can.code == status_code::device_error ? 77 : 1;
  }
  // K is constant, V is 0.25: whatever a row sees, it puts out 0.25.
  std::vector<bfloat16> const values(heads * tokens * dim, static_cast<bfloat16>(0.25f));
  std::size_t const bytes = values.size() * sizeof(bfloat16);
  buffer<device> const qkv(bytes), out(bytes);
  workspace<device> const memory(attend.workspace_bytes<bfloat16>(shape));
  auto const plan = attend.make_plan(shape);
  attention_plan<host> const seen(shape, attend.policies().rows);
  cudaMemcpy(qkv.data(), values.data(), bytes, cudaMemcpyDefault);
  auto* const x = static_cast<bfloat16*>(qkv.data());
  tensor_view<bfloat16, device> const q(x, {1, heads, tokens, dim}), kv(x, {1, 1, tokens, dim}),
      o(static_cast<bfloat16*>(out.data()), {1, heads, tokens, dim});
  or_throw(attend.plan(q, kv, plan, memory));
  or_throw(copy_plan(seen.view(), plan.view()));
  or_throw(attend.run(q, kv, kv, plan, o, memory));
  std::vector<bfloat16> got(values.size());
  cudaMemcpy(got.data(), out.data(), bytes, cudaMemcpyDefault);
  double const active = summarize(seen, attend.policies().near, mask::causal).active;
  int wrong = 0;
  for (bfloat16 const value : got) wrong += static_cast<float>(value) != 0.25f;
  std::printf("active %.2f, wrong values %d\n", active, wrong);
  return active == 0.25 && wrong == 0 ? 0 : 1;
}
