#include "support/compare_plans.hpp"
#include "support/run.hpp"

#include <omnisparse/presets.hpp>
#include <omnisparse/testing/archetypes.hpp>

using namespace testing_support;

namespace {

// The fast planner decides in float, the reference in double.
template <class T, class Compose>
void check_plan_parity(attention_shape const& s, Compose const& compose, std::uint64_t seed,
                       bool with_text) {
  auto const t = testing::random_tensors<T>(s, seed, 1.5f);
  auto const fast = compose(attention{backend::cpu{}});
  auto const slow = compose(attention{backend::reference{}});
  std::vector<segment> kinds(static_cast<std::size_t>(s.batch * s.kv_tokens));
  for (std::size_t n = 0; n < kinds.size(); ++n)
    kinds[n] = n % 11 == 3 ? segment::text : segment::visual;
  inputs<> in;
  if (with_text)
    in.segments = tensor_view<segment const, host, 2>(kinds.data(), {s.batch, s.kv_tokens});
  auto const a = fast.make_plan(s), b = slow.make_plan(s);
  std::vector<unsigned char> memory(fast.template workspace_bytes<T>(s), 0xff);
  REQUIRE(fast.plan(t.q_view(), t.k_view(), a, workspace_view<>{memory.data(), memory.size()}, in)
              .ok());
  REQUIRE(slow.plan(t.q_view(), t.k_view(), b, workspace<>{}, in).ok());
  check_same_plan(a, b, {.rows = 1000, .entries = 500, .recall = 1e-4f},
                  "seed " + std::to_string(seed));
}

}  // namespace

TEST_CASE_TEMPLATE("the fast planner decides as the reference does", T, float, double, bfloat16,
                   half) {
  std::uint64_t seed = 1;
  for (attention_shape const s :
       {attention_shape{1, 4, 2, 150, 200, 16}, attention_shape{2, 3, 1, 130, 130, 24},
        attention_shape{1, 2, 2, 70, 333, 40}}) {
    for (mask const limit : {mask::causal, mask::full}) {
      for (int window : {0, 16, 100}) {
        auto const base = [=](auto a) {
          return a.with(near_field{window, 3}).with(limit).with(chunk{60});
        };
        bool const text = ++seed % 2 == 0;
        check_plan_parity<T>(
            s,
            [&](auto a) {
              return base(a)
                  .with(selector::far_mass{.epsilon = 0.5f,
                                           .estimate = {.block = 16, .per_level = 2}})
                  .with(budget::flattest_head{.recall = 0.8f})
                  .with(rescue::coverage{.least = 0.7f, .estimate = {.block = 32}});
            },
            seed, text);
        check_plan_parity<T>(
            s,
            [&](auto a) {
              return base(a)
                  .with(selector::far_mass{
                      .epsilon = 0.9f,
                      .estimate = {.by = far_estimate::kind::upper_bound, .block = 8}})
                  .with(budget::guaranteed{.recall = 0.6f})
                  .with(rescue::coverage{.least = 0.1f,
                                         .estimate = {.by = far_estimate::kind::upper_bound}});
            },
            seed, text);
        check_plan_parity<T>(
            s,
            [&](auto a) {
              return base(a)
                  .with(selector::sink_contrast{.first = 5, .range = pool_range::past})
                  .with(budget::per_head{.recall = 0.7f})
                  .with(scorer::column_mass{.last = 5, .strided = 9, .normalise = true});
            },
            seed, text);
        check_plan_parity<T>(
            s,
            [&](auto a) {
              return base(a)
                  .with(selector::sink_contrast{})
                  .with(budget::ratio{.share = 0.3f})
                  .with(testing::peak_share{});
            },
            seed, text);
        check_plan_parity<T>(
            s,
            [&](auto a) {
              return base(a)
                  .with(budget::flattest_head{.flatness = flatness_by::entropy})
                  .with(testing::every_tenth{});
            },
            seed, text);
        check_plan_parity<T>(
            s,
            [&](auto a) {
              return base(a)
                  .with(budget::flattest_head{.flatness = flatness_by::top_share})
                  .with(testing::odd_positions{});
            },
            seed, text);
        check_plan_parity<T>(
            s,
            [&](auto a) {
              return base(a)
                  .with(testing::oldest_first{})
                  .with(budget::fixed{.count = 9})
                  .with(selector::none{});
            },
            seed, text);
      }
    }
  }
}
