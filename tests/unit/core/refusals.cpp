#include "support/refusal.hpp"

using namespace testing_support;

namespace {

attention_shape const shape = refusal_shape;

}  // namespace

TEST_CASE("bad input is refused with a sentence before anything is written") {
  using code = status_code;
  refused(code::invalid_shape, "multiple of Hkv", [](auto& a, auto& t, auto& r, auto& ws) {
    tensor_view<float const> const k(t.k.data(), {1, 3, 5, 16});
    return a(t.q_view(), k, k, r.out_view, r.lses, ws);
  });
  refused(code::invalid_shape, "k must be", [](auto& a, auto& t, auto& r, auto& ws) {
    tensor_view<float const> const k(t.k.data(), {1, 2, 16, 8});
    return a(t.q_view(), k, t.v_view(), r.out_view, r.lses, ws);
  });
  refused(code::invalid_shape, "v must", [](auto& a, auto& t, auto& r, auto& ws) {
    tensor_view<float const> const v(t.v.data(), {1, 2, 7, 16});
    return a(t.q_view(), t.k_view(), v, r.out_view, r.lses, ws);
  });
  refused(code::invalid_shape, "out must", [](auto& a, auto& t, auto& r, auto& ws) {
    tensor_view<float> const out(r.out.data(), {1, 4, 7, 16});
    return a(t.q_view(), t.k_view(), t.v_view(), out, ws);
  });
  refused(code::invalid_shape, "lse must", [](auto& a, auto& t, auto& r, auto& ws) {
    lse_view<float> const lse(r.lse.data(), {1, 4, 7});
    return a(t.q_view(), t.k_view(), t.v_view(), r.out_view, lse, ws);
  });
  refused(code::invalid_view, "contiguous", [](auto& a, auto& t, auto& r, auto& ws) {
    tensor_view<float const> q = t.q_view();
    q.strides[3] = 2;
    return a(q, t.k_view(), t.v_view(), r.out_view, r.lses, ws);
  });
  refused(code::invalid_view, "memory", [](auto& a, auto& t, auto& r, auto& ws) {
    tensor_view<float const> v = t.v_view();
    v.data = nullptr;
    return a(t.q_view(), t.k_view(), v, r.out_view, r.lses, ws);
  });
  // With room for fewer threads a call uses fewer; one must fit.
  refused(code::workspace_too_small, "workspace_bytes", [](auto& a, auto& t, auto& r, auto& ws) {
    std::size_t const one = a.with(threads{1}).workspace_bytes(t.shape);
    return a(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses,
             workspace_view<>{ws.view().data, one - 300});
  });
  refused(code::workspace_too_small, "workspace_bytes", [](auto& a, auto& t, auto& r, auto&) {
    return a(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, workspace_view<>{});
  });
  refused(code::invalid_option, "near_field", [](auto& a, auto& t, auto& r, auto& ws) {
    return a.with(near_field{.window = -1})(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses,
                                            ws);
  });
  refused(code::invalid_option, "chunk", [](auto& a, auto& t, auto& r, auto& ws) {
    return a.with(chunk{-1})(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, ws);
  });
  refused(code::invalid_option, "recall", [](auto& a, auto& t, auto& r, auto& ws) {
    auto const bad = a.with(budget::flattest_head{.recall = NAN});
    return bad(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, ws);
  });
  refused(code::invalid_option, "far_estimate", [](auto& a, auto& t, auto& r, auto& ws) {
    auto const bad = a.with(selector::far_mass{.estimate = {.block = 0}});
    return bad(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, ws);
  });
  refused(code::invalid_shape, "kv_lengths", [](auto& a, auto& t, auto& r, auto& ws) {
    int const lengths[2] = {1, 2};
    inputs<> in;
    in.kv_lengths = {lengths, {2}};
    return a(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, ws, in);
  });
  refused(code::invalid_plan, "another shape", [](auto& a, auto& t, auto& r, auto& ws) {
    attention_plan<> const plan({1, 4, 2, 8, 9, 16});
    return a.run(t.q_view(), t.k_view(), t.v_view(), plan, r.out_view, r.lses, ws);
  });
  refused(code::invalid_plan, "ascending", [](auto& a, auto& t, auto& r, auto& ws) {
    attention_plan<> const plan(shape);
    plan.view().kept_counts[1] = 2;
    plan.view().kept_at(0, 0, 1)[0] = 3;
    plan.view().kept_at(0, 0, 1)[1] = 3;
    return a.run(t.q_view(), t.k_view(), t.v_view(), plan, r.out_view, r.lses, ws);
  });
  refused(code::invalid_plan, "chunk", [](auto& a, auto& t, auto&, auto& ws) {
    attention_plan<> const plan(shape, chunk{4});
    return a.plan(t.q_view(), t.k_view(), plan, ws);
  });
  CHECK(attention{backend::cpu{}}.can_run({1, 1, 1, 4, 4, 13}).ok());
  CHECK(attention{backend::cpu{}}.can_run({1, 1, 1, 4, 4, -8}).code == code::invalid_shape);
  CHECK(attention{backend::cpu{}}.workspace_bytes({1, 1, 1, -4, 4, 8}) == 0);
}

TEST_CASE("empty calls are legal: nothing to do, or nothing to see") {
  auto const attend = attention{backend::cpu{}}.with(near_field{.window = 4});
  for (attention_shape const s :
       {attention_shape{0, 4, 2, 8, 8, 16}, attention_shape{1, 4, 2, 0, 8, 16},
        attention_shape{1, 4, 2, 8, 0, 16}, attention_shape{1, 4, 2, 8, 3, 16}}) {
    auto const t = testing::random_tensors<float>(s, 1);
    testing::result<float> r(s);
    workspace<> memory(attend.workspace_bytes(s));
    CHECK(attend(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, memory).ok());
    // Rows before the first key see nothing.
    for (int i = 0; i < s.q_tokens - s.kv_tokens && s.batch > 0; ++i) {
      CHECK(r.out_view(0, 0, i, 0) == 0.f);
      CHECK(r.lses(0, 0, i) == empty_lse<float>());
    }
    for (float const x : r.out) CHECK(is_finite(x));
  }
}
