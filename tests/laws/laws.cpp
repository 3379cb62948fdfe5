#include <omnisparse/presets.hpp>
#include <omnisparse/testing/archetypes.hpp>
#include <omnisparse/testing/laws.hpp>

#include <doctest/doctest.h>

#include <string>
#include <utility>

using namespace omnisparse;

namespace {

void holds(char const* broken) {
  CHECK_MESSAGE(broken == nullptr, std::string(broken == nullptr ? "" : broken));
}

template <class T, class Attention>
void check_composition(Attention const& attend) {
  for (attention_shape const s :
       {attention_shape{1, 4, 2, 70, 90, 16}, attention_shape{2, 3, 1, 40, 40, 8}}) {
    auto const t = testing::random_tensors<T>(s, 3, 1.5f);
    std::vector<segment> kinds(static_cast<std::size_t>(s.batch * s.kv_tokens));
    for (std::size_t n = 0; n < kinds.size(); ++n)
      kinds[n] = n % 5 == 0 ? segment::text : segment::visual;
    std::vector<int> const lengths(static_cast<std::size_t>(s.batch), 37);
    inputs<> in;
    in.segments = tensor_view<segment const, host, 2>(kinds.data(), {s.batch, s.kv_tokens});
    in.q_lengths = {lengths.data(), {s.batch}};
    for (mask const limit : {mask::causal, mask::full}) {
      auto const a = attend.with(limit).with(chunk{32}).with(near_field{.window = 8, .sinks = 2});
      holds(testing::plan_is_valid(a, t));
      holds(testing::plan_is_valid(a, t, in));
      holds(testing::plan_then_run_is_one_call(a, t));
      holds(testing::plan_then_run_is_one_call(a, t, in));
      holds(testing::everything_kept_is_dense(a, t));
    }
  }
}

template <class Backend, class T>
void check_backend() {
  auto const base = attention{Backend{}}.with(budget::fixed{.count = 7});
  check_composition<T>(base.with(selector::all{}));
  check_composition<T>(base.with(selector::none{}));
  check_composition<T>(
      base.with(selector::sink_contrast{.range = pool_range::past, .keep_lazy = 5}));
  check_composition<T>(
      base.with(selector::far_mass{.epsilon = 0.4f}).with(rescue::coverage{.least = 0.8f}));
  check_composition<T>(
      base.with(testing::mostly_far{}).with(testing::every_tenth{}).with(testing::half_reach{}));
  check_composition<T>(
      base.with(testing::leans_to_context{}).with(testing::greedy{}).with(testing::oldest_first{}));
  check_composition<T>(
      base.with(testing::odd_positions{}).with(testing::peak_share{}).with(budget::guaranteed{}));
  check_composition<T>(base.with(budget::flattest_head{.flatness = flatness_by::top_share}));
  check_composition<T>(
      base.with(budget::per_head{.recall = 0.7f}).with(scorer::column_mass{.normalise = true}));
  check_composition<T>(presets::local_first(Backend{}, 90));
  check_composition<T>(presets::published(Backend{}));
}

}  // namespace

TEST_CASE_TEMPLATE("every composition keeps the laws", Backend, backend::cpu, backend::reference) {
  check_backend<Backend, float>();
}
TEST_CASE("in other dtypes too") {
  check_backend<backend::cpu, double>();
  check_backend<backend::cpu, bfloat16>();
}

// Keys beyond one step of the kernels, chunks beyond one wave, and windows across a step's border.
TEST_CASE("on longer sequences") {
  auto const t = testing::random_tensors<float>({1, 6, 2, 1300, 1400, 16}, 7, 2.f);
  auto const far = attention{backend::cpu{}}
                       .with(selector::far_mass{.epsilon = 0.2f, .estimate = {.block = 16}})
                       .with(rescue::coverage{.least = 0.6f, .estimate = {.block = 32}})
                       .with(budget::fixed{.count = 100});
  for (mask const limit : {mask::causal, mask::full}) {
    for (auto const& [window, rows] : {std::pair{100, 200}, std::pair{700, 0}}) {
      auto const a = far.with(limit).with(chunk{rows}).with(near_field{window, 4});
      holds(testing::plan_is_valid(a, t));
      holds(testing::plan_then_run_is_one_call(a, t));
      holds(testing::plan_then_run_is_one_call(a.with(budget::flattest_head{.recall = 0.7f}), t));
      holds(testing::plan_then_run_is_one_call(a.with(budget::ratio{.share = 1.f}), t));
      holds(testing::plan_then_run_is_one_call(a.with(selector::all{}), t));
    }
  }
}

TEST_CASE_TEMPLATE("more recall never keeps fewer tokens", Backend, backend::cpu,
                   backend::reference) {
  auto const t = testing::random_tensors<float>({1, 6, 3, 80, 80, 16}, 9, 1.5f);
  auto const a = attention{Backend{}}.with(chunk{30}).with(near_field{.window = 4, .sinks = 1});
  holds(testing::more_recall_keeps_more<budget::guaranteed>(a, t));
  holds(testing::more_recall_keeps_more<budget::per_head>(a, t));
  holds(testing::more_recall_keeps_more<budget::flattest_head>(a, t));
}
