#include "support/refusal.hpp"

#include <omnisparse/presets.hpp>

#include <limits>
#include <vector>

using namespace testing_support;

namespace {

using code = status_code;
int const lowest = std::numeric_limits<int>::min(), highest = std::numeric_limits<int>::max();

}  // namespace

TEST_CASE("extents that the backends cannot count are refused by a sentence, without overflow") {
  auto const local = presets::local_first(backend::cpu{}, 4096);
  auto const slow = attention{backend::reference{}};
  int const many = 1 << 28, half_of = 1 << 14;
  struct {
    attention_shape shape;
    char const* word;
  } const cases[] = {{{highest, 1, 1, 1, 1, 8}, "2^28 rows"},
                     {{1, highest, highest, 1, 1, 8}, "2^28 rows"},
                     {{1, 1, 1, highest, 1, 8}, "2^28 rows"},
                     {{1, 1, 1, 1, highest, 8}, "2^28 rows"},
                     {{1, 1, 1, 1, many + 1, 8}, "2^28 rows"},
                     {{half_of, half_of, 1, 2, 1, 8}, "2^28 rows"},
                     {{half_of, half_of, half_of, 0, 2, 8}, "2^28 rows"},
                     {{65536, 65536, 65536, 65536, 65536, 8}, "2^28 rows"},
                     {{highest, highest, highest, highest, highest, highest}, "2^28 rows"},
                     {{0, highest, highest, highest, highest, 8}, "2^28 rows"},
                     {{0, 0, highest, highest, 0, 8}, "2^28 rows"},
                     {{1, 1, 1, 4, 4, highest}, "at most 65536"},
                     {{1, 1, 1, 4, 4, 65544}, "at most 65536"},
                     {{1, 1, 1, lowest, 4, 8}, "negative"},
                     {{lowest, lowest, lowest, lowest, lowest, lowest}, "negative"},
                     {{1, 1, 1, 4, 4, lowest}, "at least 1"},
                     {{1, lowest, 1, 4, 4, 8}, "negative"},
                     {{1, 5, 2, 4, 4, 8}, "multiple of Hkv"}};
  for (auto const& [shape, word] : cases) {
    check_refusal(local.can_run(shape), code::invalid_shape, word);
    check_refusal(slow.can_run(shape), code::invalid_shape, word);
    CHECK(local.workspace_bytes(shape) == 0);
    CHECK(local.workspace_bytes<double>(shape) == 0);
    // Views of such extents, their strides as they come; no memory is touched.
    float x = 0;
    tensor_view<float const> const q(&x, {shape.batch, shape.q_heads, shape.q_tokens, shape.dim});
    tensor_view<float const> const k(&x, {shape.batch, shape.kv_heads, shape.kv_tokens, shape.dim});
    tensor_view<float> const out(&x, {shape.batch, shape.q_heads, shape.q_tokens, shape.dim});
    CHECK(local(q, k, k, out, workspace_view<>{}).code == code::invalid_shape);
  }
  for (auto const& [shape, word] : cases) {
    if (shape.dim == highest || shape.dim == 65544 || shape.dim == lowest) continue;
    CHECK_FALSE(attention_plan<>(shape));
    CHECK_FALSE(attention_plan<>(shape, chunk{1}));
    CHECK_FALSE(local.make_plan(shape));
    plan_view<> plan;
    plan.shape = shape;
    CHECK_FALSE(check_plan(plan, shape).ok());
    CHECK_FALSE(summarize(plan, {}, mask::causal).checked.ok());
    CHECK(to_bytes(plan).empty());
  }
  CHECK_FALSE(attention_plan<>({1, 1, 1, 4, 4, 8}, chunk{-1}));
  CHECK_FALSE(attention_plan<>({1, 1, 1, 4, 4, 8}, chunk{}, highest));
}

TEST_CASE(
    "at the limits workspaces are counted without overflow, and are as large as they must be") {
  auto const count = [](auto const& attend) {
    for (attention_shape const& s : {attention_shape{1, 1, 1, 1 << 28, 1 << 28, 8},
                                     {1 << 28, 1, 1, 1, 1, 8},
                                     {1, 1 << 28, 1, 1, 1 << 28, 8},
                                     {1, 1 << 28, 1 << 28, 1, 1, 8},
                                     {1, 8, 8, 1 << 25, 3, 8},
                                     {1, 3, 3, 89478485, 89478485, 8},
                                     {1, 9, 1, 29826161, 1 << 28, 8},
                                     {0, 1 << 14, 1 << 14, 1 << 14, 1 << 14, 8},
                                     {1, 1, 1, 1, 1, 65536}}) {
      for (int const rows : {0, 1, 64, highest}) {
        auto const a = attend.with(chunk{rows});
        REQUIRE(a.can_run(s).ok());
        double const least =
            8.0 * s.batch * s.kv_heads * s.kv_tokens * s.dim;  // keys and values, packed
        CHECK(static_cast<double>(a.workspace_bytes(s)) >= least);
        CHECK(a.workspace_bytes(s) < std::size_t{1} << 62);
      }
    }
  };
  count(attention{backend::cpu{}});
  count(presets::local_first(backend::cpu{}, 4096));
  count(presets::local_first(backend::cpu{.threads = highest}, 4096)
            .with(selector::far_mass{.estimate = {.block = 1}})
            .with(rescue::coverage{.estimate = {.block = 1}}));
  count(presets::published(backend::cpu{}).with(mask::full));
}

TEST_CASE("lengths and segments are checked wherever they are taken") {
  attention_shape const s{2, 4, 2, 8, 8, 16};
  auto const t = testing::random_tensors<float>(s, 1);
  testing::result<float> r(s);
  auto const attend = attention{backend::cpu{}};
  workspace<> memory(attend.workspace_bytes(s));
  attention_plan<> const plan(s);
  kv_cache<backend::cpu, float> cache({.kv_heads = 2, .dim = 16, .max_tokens = 64});
  int n = 0;
  REQUIRE(cache.add(n).ok());
  auto const check = [&](inputs<> const& in, code wanted, char const* word) {
    check_refusal(attend(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, memory, in),
                  wanted, word);
    check_refusal(attend.plan(t.q_view(), t.k_view(), plan, memory, in), wanted, word);
    check_refusal(
        attend.run(t.q_view(), t.k_view(), t.v_view(), plan, r.out_view, r.lses, memory, in),
        wanted, word);
    check_refusal(attend.slim(t.k_view(), t.v_view(), plan, cache, n, in, 1), wanted, word);
    check_refusal(attend.slim(plan, cache, n, in, 1), wanted, word);
    plan_summary const sum = summarize(plan, {}, mask::causal, in);
    check_refusal(sum.checked, wanted, word);
    CHECK(sum.heads.empty());
    CHECK(sum.mask_pairs == 0);
    CHECK(to_string(sum).starts_with("omnisparse: "));
    CHECK(is_nan(r.out[0]));
    CHECK(cache.appended(n) == 0);
  };
  int const three[3] = {8, 8, 8};
  segment const kinds[32] = {};
  for (int const batch : {0, 1, 3, -2, highest}) {
    check({.q_lengths = {three, {batch}}}, code::invalid_shape, "q_lengths");
    check({.kv_lengths = {three, {batch}}}, code::invalid_shape, "kv_lengths");
    check({.segments = {kinds, {batch, 8}}}, code::invalid_shape, "segments");
  }
  check({.segments = {kinds, {2, 9}}}, code::invalid_shape, "segments");
  check({.segments = {kinds, {2, 0}}}, code::invalid_shape, "segments");
  check({.kv_lengths = {nullptr, {2}}}, code::invalid_view, "no memory");
  check({.q_lengths = {nullptr, {2}}}, code::invalid_view, "no memory");
  check({.segments = {nullptr, {2, 8}}}, code::invalid_view, "no memory");
  check({.kv_lengths = {nullptr, {5}}}, code::invalid_shape, "kv_lengths");
  std::int64_t const far = std::numeric_limits<std::int64_t>::min();
  check({.kv_lengths = {three, {2}, {far}}}, code::invalid_view, "2^56");

  // Legal: any strides; lengths beyond the ends count as the ends.
  int const wild[4] = {-3, lowest, highest, 100};
  inputs<> const ends{.q_lengths = {wild + 3, {2}, {-1}}, .kv_lengths = {wild + 2, {2}, {0}}};
  CHECK(attend(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, memory, ends).ok());
  float const whole = r.out_view(1, 3, 7, 15);
  CHECK(attend(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, memory).ok());
  CHECK(r.out_view(1, 3, 7, 15) == whole);
  inputs<> const none{.kv_lengths = {wild, {2}}};
  CHECK(attend(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, memory, none).ok());
  CHECK(r.out_view(0, 0, 7, 0) == 0.f);
  CHECK(r.lses(1, 0, 7) == empty_lse<float>());
  CHECK(summarize(plan, {}, mask::causal, none).mask_pairs == 0);
}

TEST_CASE("views without memory and strides that reach nowhere are refused") {
  refused(code::invalid_view, "no memory", [](auto& a, auto& t, auto& r, auto& ws) {
    return a(t.q_view(), t.k_view(), t.v_view(), r.out_view, lse_view<float>(nullptr, {1, 4, 8}),
             ws);
  });
  refused(code::invalid_shape, "lse must", [](auto& a, auto& t, auto& r, auto& ws) {
    return a(t.q_view(), t.k_view(), t.v_view(), r.out_view, lse_view<float>(nullptr, {1, 4, 0}),
             ws);
  });
  refused(code::invalid_view, "memory", [](auto& a, auto& t, auto& r, auto& ws) {
    return a(tensor_view<float const>(nullptr, {1, 4, 8, 16}), t.k_view(), t.v_view(), r.out_view,
             ws);
  });
  refused(code::invalid_view, "memory", [](auto& a, auto& t, auto&, auto& ws) {
    return a(t.q_view(), t.k_view(), t.v_view(), tensor_view<float>(nullptr, {1, 4, 8, 16}), ws);
  });
  for (std::int64_t const far :
       {std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max(),
        std::int64_t{1} << 60, -(std::int64_t{1} << 55)}) {
    refused(code::invalid_view, "2^56", [far](auto& a, auto& t, auto& r, auto& ws) {
      tensor_view<float const> q = t.q_view();
      q.strides[1] = far;
      return a(q, t.k_view(), t.v_view(), r.out_view, r.lses, ws);
    });
    refused(code::invalid_view, "2^56", [far](auto& a, auto& t, auto& r, auto& ws) {
      return a(t.q_view(), t.k_view(), t.v_view(), r.out_view,
               lse_view<float>(r.lse.data(), {1, 4, 8}, {0, 8, far}), ws);
    });
  }
  refused(code::workspace_too_small, "workspace_bytes", [](auto& a, auto& t, auto& r, auto& ws) {
    return a(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses,
             workspace_view<>{nullptr, ws.bytes()});
  });
  CHECK(tensor_view<float>(nullptr, {highest, highest, highest, highest}).size() ==
        std::numeric_limits<std::int64_t>::max());
  CHECK(tensor_view<float>(nullptr, {65536, 65536, 65536, 65536}).size() > 0);
  CHECK(tensor_view<float>(nullptr, {highest, highest, 0, -1}).size() == 0);
  CHECK(view_tokens_first(static_cast<float*>(nullptr), {2, 3, 5, 7}).stride(2) == 21);
}

TEST_CASE("a plan without sense is refused by all who read one") {
  refused(code::invalid_plan, "chunk_rows", [](auto& a, auto& t, auto& r, auto& ws) {
    attention_plan<> const owner(refusal_shape);
    plan_view<> plan = owner.view();
    plan.chunk_rows = lowest;
    return a.run(t.q_view(), t.k_view(), t.v_view(), plan, r.out_view, r.lses, ws);
  });
  refused(code::invalid_plan, "null parts", [](auto& a, auto& t, auto& r, auto& ws) {
    plan_view<> const plan{.shape = refusal_shape, .chunk_rows = highest, .capacity = 8};
    return a.run(t.q_view(), t.k_view(), t.v_view(), plan, r.out_view, r.lses, ws);
  });
  refused(code::invalid_plan, "capacity", [](auto& a, auto& t, auto&, auto& ws) {
    attention_plan<> const owner(refusal_shape);
    plan_view<> plan = owner.view();
    plan.capacity = highest;
    return a.plan(t.q_view(), t.k_view(), plan, ws);
  });
  attention_plan<> const plan(refusal_shape, chunk{highest});
  REQUIRE(plan);
  CHECK(plan.view().chunks() == 1);
  plan.view().kept_counts[1] = -1;
  check_refusal(summarize(plan, {}, mask::causal).checked, code::invalid_plan, "count");
  CHECK(to_bytes(plan).empty());
  plan.view().kept_counts[1] = 0;
  check_refusal(summarize(plan, {-1, 0}, mask::causal).checked, code::invalid_option, "near_field");
  check_refusal(summarize(plan, {}, static_cast<mask>(2)).checked, code::invalid_option, "mask");
  CHECK(summarize(plan, {highest, highest}, mask::full).density == 1.0);
}
