#include "support/refusal.hpp"

#include <set>
#include <vector>

using namespace testing_support;

namespace {

using footprint = omnisparse::detail::footprint;
using code = status_code;

char const* const shared = "elements of its own";

// Every byte of a view, and whether one comes twice.
template <class V>
std::set<char const*> bytes_of(V const& view, bool& twice) {
  std::set<char const*> bytes;
  twice = false;
  for (int a = 0; a < view.extent(0); ++a) {
    for (int b = 0; b < view.extent(1); ++b) {
      for (int c = 0; c < view.extent(2); ++c) {
        auto const* const first = reinterpret_cast<char const*>(view.at(a, b, c));
        for (std::size_t n = 0; n < sizeof(typename V::element_type); ++n) {
          twice = !bytes.insert(first + n).second || twice;
        }
      }
    }
  }
  return bytes;
}

}  // namespace

TEST_CASE("shared elements are found exactly, whatever the strides") {
  testing::generator g(11);
  std::vector<float> memory(400);
  int met = 0, repeated = 0;
  for (int n = 0; n < 20000; ++n) {
    auto const any = [&](auto* at) {
      auto const stride = [&] { return std::int64_t{g.between(-12, 12)}; };
      using T = std::remove_pointer_t<decltype(at)>;
      return tensor_view<T, host, 3>(at, {g.between(0, 4), g.between(1, 4), g.between(1, 4)},
                                     {stride(), stride(), g.below(2) == 0 ? 1 : stride()});
    };
    auto const x = any(memory.data() + 200);
    auto const y = any(reinterpret_cast<half*>(memory.data() + 150 + g.below(100)));
    bool x_twice = false, y_twice = false, apart = true;
    auto const one = bytes_of(x, x_twice), two = bytes_of(y, y_twice);
    for (char const* const byte : one) apart = apart && two.count(byte) == 0;
    REQUIRE(footprint(x).meets(footprint(y)) == !apart);
    REQUIRE(footprint(y).meets(footprint(x)) == !apart);
    REQUIRE(footprint(x).meets_itself() == (x_twice && x.size() > 0));
    met += apart ? 0 : 1;
    repeated += x_twice ? 1 : 0;
  }
  CHECK(met > 2000);
  CHECK(met < 18000);
  CHECK(repeated > 2000);
  CHECK(repeated < 18000);
}

TEST_CASE("an output in place of an input is refused, on every way in") {
  auto const by_policies = attention{backend::cpu{}}
                               .with(selector::far_mass{})
                               .with(budget::per_head{})
                               .with(rescue::coverage{});
  refused(code::invalid_view, shared, [](auto& a, auto& t, auto&, auto& ws) {
    tensor_view<float> const q(const_cast<float*>(t.q.data()), {1, 4, 8, 16});
    std::vector<float> const before = t.q;
    status const s = a(q, t.k_view(), t.v_view(), q, ws);
    CHECK(t.q == before);
    return s;
  });
  refused_by(by_policies, code::invalid_view, shared, [](auto& a, auto& t, auto& r, auto& ws) {
    return a(tensor_view<float const>(r.out_view), t.k_view(), t.v_view(), r.out_view, r.lses, ws);
  });
  refused(code::invalid_view, shared, [](auto& a, auto& t, auto& r, auto& ws) {
    tensor_view<float const> const k(r.out.data() + 1, {1, 2, 8, 16});
    return a(t.q_view(), k, t.v_view(), r.out_view, r.lses, ws);
  });
  refused(code::invalid_view, shared, [](auto& a, auto& t, auto& r, auto& ws) {
    tensor_view<float const> const v(r.out.data() + 255, {1, 2, 8, 16});
    return a(t.q_view(), t.k_view(), v, r.out_view, r.lses, ws);
  });
  refused(code::invalid_view, shared, [](auto& a, auto& t, auto& r, auto& ws) {
    lse_view<float> const lse(r.out.data() + r.out.size() - 1, {1, 4, 8});
    return a(t.q_view(), t.k_view(), t.v_view(), r.out_view, lse, ws);
  });
  refused(code::invalid_view, shared, [](auto& a, auto& t, auto& r, auto& ws) {
    lse_view<float> const lse(const_cast<float*>(t.v.data()), {1, 4, 8});
    return a(t.q_view(), t.k_view(), t.v_view(), r.out_view, lse, ws);
  });
  refused(code::invalid_view, shared, [](auto& a, auto& t, auto& r, auto& ws) {
    inputs<> in;
    in.kv_lengths = {reinterpret_cast<int*>(r.out.data()), {1}};
    return a(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, ws, in);
  });
  refused(code::invalid_view, shared, [](auto& a, auto& t, auto& r, auto& ws) {
    inputs<> in;
    in.segments = {reinterpret_cast<segment*>(r.lse.data()) + 7, {1, 8}};
    return a(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, ws, in);
  });
  refused(code::invalid_view, shared, [](auto& a, auto& t, auto& r, auto& ws) {
    attention_plan<> const plan(refusal_shape);
    tensor_view<float> const out(reinterpret_cast<float*>(plan.view().kept), {1, 4, 8, 16});
    status const s = a.run(t.q_view(), t.k_view(), t.v_view(), plan, out, r.lses, ws);
    CHECK(plan.view().kept[0] == 0);
    return s;
  });
  refused(code::invalid_view, shared, [](auto& a, auto& t, auto& r, auto& ws) {
    attention_plan<> const plan(refusal_shape);
    lse_view<float> const lse(plan.view().recalls, {1, 4, 8});
    return a.run(t.q_view(), t.k_view(), t.v_view(), plan, r.out_view, lse, ws);
  });
}

TEST_CASE("elements of an output that coincide are refused; inputs may repeat") {
  refused(code::invalid_view, shared, [](auto& a, auto& t, auto& r, auto& ws) {
    tensor_view<float> const out(r.out.data(), {1, 4, 8, 16}, {0, 0, 16, 1});
    return a(t.q_view(), t.k_view(), t.v_view(), out, r.lses, ws);
  });
  refused(code::invalid_view, shared, [](auto& a, auto& t, auto& r, auto& ws) {
    tensor_view<float> const out(r.out.data(), {1, 4, 8, 16}, {0, 64, 15, 1});
    return a(t.q_view(), t.k_view(), t.v_view(), out, r.lses, ws);
  });
  refused(code::invalid_view, shared, [](auto& a, auto& t, auto& r, auto& ws) {
    lse_view<float> const lse(r.lse.data(), {1, 4, 8}, {0, 0, 0});
    return a(t.q_view(), t.k_view(), t.v_view(), r.out_view, lse, ws);
  });
  auto const t = testing::random_tensors<float>(refusal_shape, 1);
  testing::result<float> r(refusal_shape), mirrored(refusal_shape);
  auto const attend = attention{backend::cpu{}};
  workspace<> memory(attend.workspace_bytes(refusal_shape));
  tensor_view<float const> const one_head(t.k.data(), {1, 2, 8, 16}, {0, 0, 16, 1});
  CHECK(attend(t.q_view(), one_head, one_head, r.out_view, r.lses, memory).ok());
  // Rows from the last to the first.
  tensor_view<float> const out(mirrored.out.data() + 7 * 16, {1, 4, 8, 16}, {512, 128, -16, 1});
  CHECK(attend(t.q_view(), one_head, one_head, out, mirrored.lses, memory).ok());
  CHECK(out(0, 3, 2, 5) == r.out_view(0, 3, 2, 5));
}

TEST_CASE("q, k, v and out may stand in one buffer, and lse beside them") {
  attention_shape const s{2, 3, 3, 6, 6, 16};
  // [B, N, 4 H D + H]: q, k, v, out of a token, then its log-sum-exps.
  int const row = 4 * 48 + 3;
  std::vector<float> fused(static_cast<std::size_t>(2 * 6 * row));
  for (std::size_t n = 0; n < fused.size(); ++n) fused[n] = static_cast<float>(n % 17) / 8.f;
  auto const part = [&](int n) {
    return tensor_view<float>(fused.data() + 48 * n, {2, 3, 6, 16}, {6 * row, 16, row, 1});
  };
  lse_view<float> const lse(fused.data() + 4 * 48, {2, 3, 6}, {6 * row, 1, row});
  auto const attend = attention{backend::cpu{}}.with(near_field{.window = 3});
  workspace<> memory(attend.workspace_bytes(s));
  testing::result<float> apart(s);
  REQUIRE(attend(part(0), part(1), part(2), apart.out_view, apart.lses, memory).ok());
  CHECK(attend(part(0), part(1), part(2), part(3), lse, memory).ok());
  CHECK(part(3)(1, 2, 5, 15) == apart.out_view(1, 2, 5, 15));
  CHECK(lse(1, 2, 5) == apart.lses(1, 2, 5));
  check_refusal(attend(part(0), part(1), part(2), part(1), lse, memory), code::invalid_view,
                shared);
  lse_view<float> const onto_out(fused.data() + 4 * 48 - 1, {2, 3, 6}, {6 * row, 1, row});
  check_refusal(attend(part(0), part(1), part(2), part(3), onto_out, memory), code::invalid_view,
                shared);
}

TEST_CASE("the workspace and a plan that is written have memory of their own") {
  auto const in_workspace = [](auto* data) {
    return workspace_view<>{const_cast<void*>(static_cast<void const*>(data)), 1 << 20};
  };
  refused(code::invalid_view, "workspace shares", [&](auto& a, auto& t, auto& r, auto&) {
    return a(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, in_workspace(t.v.data()));
  });
  refused(code::invalid_view, "workspace shares", [&](auto& a, auto& t, auto& r, auto&) {
    return a(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, in_workspace(r.lse.data()));
  });
  refused(code::invalid_view, "workspace shares", [&](auto& a, auto& t, auto& r, auto&) {
    attention_plan<> const plan(refusal_shape);
    return a.run(t.q_view(), t.k_view(), t.v_view(), plan, r.out_view, r.lses,
                 in_workspace(plan.view().rows));
  });
  refused(code::invalid_view, "workspace shares", [&](auto& a, auto& t, auto&, auto&) {
    attention_plan<> const plan(refusal_shape);
    return a.plan(t.q_view(), t.k_view(), plan, in_workspace(plan.view().kept_counts));
  });
  refused(code::invalid_view, "part of the plan", [](auto& a, auto& t, auto&, auto& ws) {
    plan_view<> plan = attention_plan<>(refusal_shape).view();
    plan.rows = reinterpret_cast<row_class*>(const_cast<float*>(t.k.data()));
    attention_plan<> const owner(refusal_shape);
    plan.kept = owner.view().kept;
    plan.kept_counts = owner.view().kept_counts;
    plan.recalls = owner.view().recalls;
    return a.plan(t.q_view(), t.k_view(), plan, ws);
  });
  refused(code::invalid_view, "part of the plan", [](auto& a, auto& t, auto&, auto& ws) {
    attention_plan<> const owner(refusal_shape);
    plan_view<> plan = owner.view();
    plan.recalls = reinterpret_cast<float*>(plan.kept_counts + 1);
    return a.plan(t.q_view(), t.k_view(), plan, ws);
  });
}
