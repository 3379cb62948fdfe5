// What the functor refuses on the GPU before anything is launched: outputs stay full of NaN.
#include "support/device.cuh"

#include <cstring>
#include <limits>

using namespace testing_support;

namespace {

using code = status_code;

void refused(status s, code wanted, char const* word) {
  CHECK_MESSAGE(s.code == wanted, s.message);
  CHECK_MESSAGE(std::strstr(s.message, word) != nullptr, s.message);
}

}  // namespace

TEST_CASE("device views are kept apart, and checked, as host views are") {
  attention_shape const s{1, 4, 2, 96, 96, 64};
  auto const t = testing::random_tensors<bfloat16>(s, 1);
  device_call<bfloat16> const call(t);
  auto const attend = attention{backend::cuda{}}.with(budget::fixed{.count = 8});
  attention_plan<device> const plan(s), twin(s);
  buffer<device> const memory(attend.workspace_bytes<bfloat16>(s));
  REQUIRE((plan && twin && memory));
  workspace_view<device> const ws{memory.data(), memory.bytes()};
  auto const& [shape, q, k, v, out, lse_memory, lse] = call;
  auto const attended = [&](auto const& to, auto const& lses, workspace_view<device> const& work,
                            inputs<device> const& in = {}) {
    return attend(q.view, k.view, v.view, to, lses, work, in);
  };
  char const* const shared = "elements of its own";
  refused(attended(q.view, lse, ws), code::invalid_view, shared);
  refused(attended(k.view, lse, ws), code::invalid_shape, "out must");
  auto* const raw = static_cast<float*>(static_cast<void*>(out.view.data));
  refused(attended(out.view, lse_view<bfloat16, device>(raw, {1, 4, 96}), ws), code::invalid_view,
          shared);
  refused(attended(out.view, lse_view<bfloat16, device>(lse.data, {1, 4, 96}, {0, 0, 1}), ws),
          code::invalid_view, shared);
  refused(attended(out.view, lse_view<bfloat16, device>(nullptr, {1, 4, 96}), ws),
          code::invalid_view, "no memory");
  refused(attended(out.view, lse, {v.view.data, memory.bytes()}), code::invalid_view, "workspace");
  inputs<device> in;
  in.kv_lengths = {static_cast<int const*>(lse_memory.data()), {2}};
  refused(attended(out.view, lse, ws, in), code::invalid_shape, "kv_lengths");
  in.kv_lengths = {static_cast<int const*>(lse_memory.data()), {1}};
  refused(attended(out.view, lse, ws, in), code::invalid_view, shared);
  plan_view<device> onto = plan;
  onto.kept = reinterpret_cast<int*>(k.view.data);
  refused(attend.plan(q.view, k.view, onto, ws), code::invalid_view, "part of the plan");
  refused(attend.run(q.view, k.view, v.view, plan, out.view,
                     lse_view<bfloat16, device>(plan.view().recalls, {1, 4, 96}, {0, 0, 0}), ws),
          code::invalid_view, shared);
  refused(copy_plan(plan.view(), plan.view()), code::invalid_view, "shares memory");
  onto.kept = nullptr;
  refused(copy_plan(twin.view(), onto), code::invalid_plan, "null parts");
  refused(copy_plan(onto, twin.view()), code::invalid_plan, "null parts");
  float const nan = std::numeric_limits<float>::quiet_NaN();
  refused(attend.with(selector::far_mass{.epsilon = nan}).can_run<bfloat16>(s),
          code::invalid_option, "far_mass.epsilon");
  auto const no_path = attention{backend::cuda{.path = static_cast<backend::cuda_path>(5)}};
  refused(no_path.can_run<bfloat16>(s), code::invalid_option, "cuda_path");
  int const most = std::numeric_limits<int>::max();
  refused(attend.can_run<bfloat16>({1, 1, 1, most, most, 64}), code::invalid_shape, "2^28 rows");
  check_cuda(cudaDeviceSynchronize());
  for (bfloat16 const x : out.download()) REQUIRE(std::isnan(static_cast<float>(x)));
  for (float const x : call.lses()) REQUIRE(std::isnan(x));
  // One buffer for q, k, v and out is legal.
  CHECK(attended(out.view, lse, ws).ok());
  buffer<device> const fused(s.q_tokens * (4 + 2 + 2 + 4) * 64 * sizeof(bfloat16));
  REQUIRE(fused);
  auto const part = [&](int head, int heads) {
    return tensor_view<bfloat16, device>(static_cast<bfloat16*>(fused.data()) + head * 64,
                                         {1, heads, s.q_tokens, 64}, {0, 64, 12 * 64, 1});
  };
  CHECK(attend(part(0, 4), part(4, 2), part(6, 2), part(8, 4), ws).ok());
  refused(attend(part(0, 4), part(4, 2), part(6, 2), part(7, 4), ws), code::invalid_view, shared);
  check_cuda(cudaDeviceSynchronize());
}
