#include "support/refusal.hpp"

#include <omnisparse/presets.hpp>
#include <omnisparse/testing/archetypes.hpp>

#include <limits>
#include <vector>

using namespace testing_support;

namespace {

using code = status_code;
float const infinity = std::numeric_limits<float>::infinity();
int const lowest = std::numeric_limits<int>::min(), highest = std::numeric_limits<int>::max();

// A user's policy without a say about its options, and one with.
struct garbage_budget {
  using observes = observation::nothing;
  int answer = 0;
  constexpr int tokens(observes, kv_extent) const noexcept { return answer; }
};
struct nan_scorer {
  using observes = observation::nothing;
  int first = 0;  // not the library's: no contrast is observed
  constexpr bool probes(int, int) const noexcept { return false; }
  constexpr float score(observes, token t) const noexcept {
    return t.position % 2 == 0 ? __builtin_nanf("") : 1.f;
  }
};
struct picky {
  using observes = observation::nothing;
  int stride = 1;
  constexpr char const* refuses() const noexcept {
    return stride > 0 ? nullptr : "omnisparse: picky.stride must be > 0";
  }
  constexpr bool keeps(observes, query_row row) const noexcept {
    return row.position % stride == 0;
  }
};

// Every way in refuses, and leaves what it would write as it was.
template <class Attention>
void refused_everywhere(Attention const& attend, char const* word) {
  attention_shape const s = refusal_shape;
  auto const sound = attention{backend::cpu{}};
  auto const t = testing::random_tensors<float>(s, 1);
  testing::result<float> r(s);
  attention_plan<> const plan(s);
  plan.view().rows[5] = row_class::rescued;
  workspace<> memory(std::size_t{1} << 22);
  auto const check = [&](status const& answer) {
    check_refusal(answer, code::invalid_option, word);
    for (float const x : r.out) REQUIRE(is_nan(x));
    for (float const x : r.lse) REQUIRE(is_nan(x));
    REQUIRE(plan.view().rows[5] == row_class::rescued);
  };
  check(attend.can_run(s));
  check(attend(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, memory));
  check(attend.plan(t.q_view(), t.k_view(), plan, memory));
  check(attend.run(t.q_view(), t.k_view(), t.v_view(), plan, r.out_view, r.lses, memory));
  CHECK(attend.workspace_bytes(s) == 0);
  CHECK_FALSE(attend.make_plan(s));
  kv_cache<backend::cpu, float> cache({.kv_heads = 2, .dim = 16, .max_tokens = 64});
  int n = 0;
  REQUIRE(cache.add(n).ok());
  check(attend.slim(t.k_view(), t.v_view(), plan, cache, n));
  CHECK(cache.appended(n) == 0);
  REQUIRE(sound.slim(t.k_view(), t.v_view(), plan, cache, n).ok());
  check(attend.slim(plan, cache, n));
  CHECK(cache.stored(n, 1, segment::visual) == 8);
  CHECK(attend.decode_workspace_bytes(cache, 1, 4) == 0);
  tensor_view<float const> const q(t.q.data(), {1, 4, 1, 16});
  check(attend.decode(q, cache, tensor_view<float>(r.out.data(), {1, 4, 1, 16}), memory));
}

template <class Enum>
Enum outside() {
  return static_cast<Enum>(7);
}

}  // namespace

TEST_CASE("an option out of range is refused by a sentence, on every way in") {
  auto const base = attention{backend::cpu{}};
  for (float const bad : {NAN, -NAN, infinity, -infinity, -0.001f, 1.001f, 1e30f}) {
    refused_everywhere(base.with(selector::far_mass{.epsilon = bad}), "far_mass.epsilon");
    refused_everywhere(base.with(selector::sink_contrast{.tau = bad}), "sink_contrast.tau");
    refused_everywhere(base.with(rescue::coverage{.least = bad}), "coverage.least");
    refused_everywhere(base.with(budget::ratio{.share = bad}), "ratio.share");
    refused_everywhere(base.with(budget::flattest_head{.recall = bad}), "recall");
    refused_everywhere(base.with(budget::guaranteed{.recall = bad}), "recall");
    refused_everywhere(base.with(budget::per_head{.recall = bad}), "recall");
    refused_everywhere(base.with(slim::head_fetch{.threshold = bad}), "head_fetch.threshold");
    refused_everywhere(base.with(testing::half_reach{.recall = bad}), "recall");
  }
  for (float const bad : {NAN, infinity, -1.f, 2e30f}) {
    far_estimate const estimate{.variance_weight = bad};
    refused_everywhere(base.with(selector::far_mass{.estimate = estimate}), "variance_weight");
    refused_everywhere(base.with(rescue::coverage{.estimate = estimate}), "variance_weight");
  }
  for (int const bad : {0, -1, lowest, highest}) {
    refused_everywhere(base.with(selector::far_mass{.estimate = {.block = bad}}), "block");
    refused_everywhere(base.with(rescue::coverage{.estimate = {.per_level = bad}}), "per_level");
  }
  for (int const bad : {-1, lowest}) {
    refused_everywhere(base.with(budget::fixed{.count = bad}), "fixed.count");
    refused_everywhere(base.with(selector::sink_contrast{.first = bad}), "'first'");
    refused_everywhere(base.with(selector::sink_contrast{.keep_lazy = bad}), "keep_lazy");
    refused_everywhere(base.with(scorer::column_mass{.last = bad}), "last and strided");
    refused_everywhere(base.with(scorer::column_mass{.strided = bad}), "last and strided");
    refused_everywhere(base.with(near_field{.window = bad}), "near_field");
    refused_everywhere(base.with(near_field{.sinks = bad}), "near_field");
    refused_everywhere(base.with(chunk{bad}), "chunk");
  }
  for (double const bad : {double{NAN}, -1.0, 1e31, double{infinity}}) {
    refused_everywhere(base.with(softmax_scale{bad}), "softmax_scale");
  }
  refused_everywhere(base.with(outside<mask>()), "mask");
  refused_everywhere(base.with(outside<crossover>()), "crossover");
  refused_everywhere(attention{backend::cpu{.threads = -1}}, "threads");
  refused_everywhere(base.with(selector::sink_contrast{.range = outside<pool_range>()}),
                     "pool_range");
  refused_everywhere(base.with(budget::flattest_head{.flatness = outside<flatness_by>()}),
                     "flatness");
  refused_everywhere(
      base.with(selector::far_mass{.estimate = {.by = outside<far_estimate::kind>()}}), "kind");
}

TEST_CASE("presets hand their options on to the same checks") {
  backend::cpu const b;
  refused_everywhere(presets::published(b, {.tau = NAN}), "sink_contrast.tau");
  refused_everywhere(presets::published(b, {.recall = -1.f}), "recall");
  refused_everywhere(presets::published(b, {.near = {.window = -1}}), "near_field");
  refused_everywhere(presets::local_first(b, 8, {.window = -1}), "near_field");
  refused_everywhere(presets::local_first(b, 8, {.sinks = lowest}), "near_field");
  refused_everywhere(presets::local_first(b, 8, {.epsilon = NAN}), "far_mass.epsilon");
  refused_everywhere(presets::local_first(b, 8, {.recall = NAN}), "recall");
  refused_everywhere(presets::local_first(b, 8, {.least = 2.f}), "coverage.least");
  refused_everywhere(presets::local_first(b, 8, {.chunk_rows = lowest}), "chunk");
  CHECK(presets::local_first(b, lowest).can_run(refusal_shape).ok());
}

TEST_CASE("the ends of every range are legal") {
  auto const base = attention{backend::cpu{}};
  auto const t = testing::random_tensors<float>(refusal_shape, 1);
  auto const runs = [&](auto const& attend) {
    CHECK(testing::plan_is_valid(attend, t) == nullptr);
    CHECK(testing::plan_then_run_is_one_call(attend, t) == nullptr);
  };
  for (float const end : {0.f, -0.f, 1.f}) {
    runs(base.with(selector::far_mass{.epsilon = end}).with(rescue::coverage{.least = end}));
    runs(base.with(selector::sink_contrast{.tau = end}).with(budget::ratio{.share = end}));
    runs(base.with(budget::per_head{.recall = end}));
  }
  runs(base.with(near_field{highest, highest}).with(chunk{highest}).with(budget::fixed{3}));
  runs(base.with(near_field{highest, 0}).with(mask::full).with(budget::fixed{highest}));
  runs(base.with(near_field{0, highest}).with(mask::full).with(budget::fixed{3}));
  runs(base.with(scorer::column_mass{highest, highest}).with(budget::per_head{}));
  runs(base.with(selector::sink_contrast{.first = highest, .keep_lazy = highest})
           .with(budget::fixed{}));
  runs(base.with(selector::far_mass{.estimate = {.block = 1 << 20, .per_level = 1 << 20}}));
}

TEST_CASE("a share of tokens is counted without a conversion out of range") {
  for (float const share : {NAN, -1.f, 1e30f, infinity, -infinity, 0.5f, 1.f}) {
    for (int const tokens : {0, 1, 7, 16777217, highest}) {
      int const kept = budget::ratio{.share = share}.tokens({}, {tokens});
      CHECK(kept >= 0);
      CHECK(kept <= tokens);
    }
  }
  CHECK(budget::ratio{.share = 0.5f}.tokens({}, {7}) == 4);
}

TEST_CASE("what users' policies answer is made safe; what they say of their options is heard") {
  auto const t = testing::random_tensors<float>(refusal_shape, 1);
  for (int const answer : {lowest, -1, 0, 3, highest}) {
    auto const attend = attention{backend::cpu{}}.with(garbage_budget{answer});
    CHECK(testing::plan_is_valid(attend, t) == nullptr);
    CHECK(testing::plan_is_valid(attend.with(nan_scorer{}), t) == nullptr);
    auto const slow = attention{backend::reference{}}.with(garbage_budget{answer});
    CHECK(testing::plan_is_valid(slow.with(nan_scorer{}), t) == nullptr);
  }
  auto const attend = attention{backend::cpu{}}.with(picky{.stride = 2});
  CHECK(testing::plan_is_valid(attend, t) == nullptr);
  refused_everywhere(attend.with(picky{.stride = 0}), "picky.stride");
}
