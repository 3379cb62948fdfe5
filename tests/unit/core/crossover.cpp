#include <omnisparse/presets.hpp>
#include <omnisparse/testing/laws.hpp>

#include <doctest/doctest.h>

#include <cstring>

using namespace omnisparse;

TEST_CASE("a crossover point counts keys, and the operations of dense attention") {
  constexpr crossover_point by_keys{.kv_tokens = 100};
  static_assert(by_keys.prefers_dense({1, 1, 1, 99, 99, 8}, mask::causal));
  static_assert(!by_keys.prefers_dense({1, 1, 1, 1, 100, 8}, mask::causal));
  static_assert(!crossover_point{}.prefers_dense({1, 1, 1, 0, 0, 8}, mask::causal));
  // 4 D B H pairs: the pairs are counted by hand.
  auto const flops_of = [](attention_shape const& s, mask limit) {
    double pairs = 0;
    for (int i = 0; i < s.q_tokens; ++i) {
      pairs += near_field::visible(sequence_extent{s.q_tokens, s.kv_tokens}.position(i),
                                   s.kv_tokens, limit)
                   .size();
    }
    return 4.0 * s.dim * s.batch * s.q_heads * pairs;
  };
  for (attention_shape const s :
       {attention_shape{2, 6, 3, 7, 7, 16}, attention_shape{1, 2, 1, 3, 9, 8},
        attention_shape{1, 2, 1, 9, 4, 8}, attention_shape{1, 1, 1, 1, 1, 64}}) {
    for (mask const limit : {mask::causal, mask::full}) {
      double const flops = flops_of(s, limit);
      CHECK_FALSE(crossover_point{.flops = flops}.prefers_dense(s, limit));
      CHECK(crossover_point{.flops = flops * 1.001}.prefers_dense(s, limit));
    }
  }
}

TEST_CASE("short calls of a preset run dense, longer ones and all that must plan do not") {
  auto const preset = presets::local_first(backend::cpu{}, 600, {.window = 32, .chunk_rows = 100});
  attention_shape const s{1, 4, 2, 600, 600, 16};
  attention_shape const longer{1, 4, 2, 1 << 17, 1 << 17, 16};
  CHECK(preset.runs_dense(s));
  CHECK_FALSE(preset.runs_dense(longer));
  CHECK_FALSE(preset.runs_dense({1, 3, 2, 10, 10, 16}));  // refused, so not run at all
  CHECK(attention{backend::cpu{}}.runs_dense(longer));
  CHECK_FALSE(preset.with(crossover::never).runs_dense(s));
  CHECK_FALSE(attention{backend::cpu{}}.with(selector::far_mass{}).runs_dense(s));
  CHECK(
      attention{backend::cpu{}}.with(selector::far_mass{}).with(crossover::measured).runs_dense(s));
  CHECK_FALSE(presets::local_first(backend::cpu{}, 600, {.below = crossover::never}).runs_dense(s));
  CHECK_FALSE(presets::published(backend::cpu{}, {.below = crossover::never}).runs_dense(s));

  auto const t = testing::random_tensors<float>(s, 3, 2.f);
  auto const call = [&](auto const& attend) {
    testing::result<float> r(s);
    workspace<> memory(attend.workspace_bytes(s));
    REQUIRE(attend(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, memory).ok());
    return r.out;
  };
  auto const dense = attention{backend::cpu{}}.with(softmax_scale{0.3});
  auto const scaled = preset.with(softmax_scale{0.3});
  CHECK(call(scaled) == call(dense));
  CHECK(call(scaled.with(mask::full)) == call(dense.with(mask::full)));
  CHECK(call(scaled) != call(scaled.with(crossover::never)));

  // Planning is never left out where it is asked for.
  auto const plan = preset.make_plan(s);
  workspace<> memory(preset.workspace_bytes(s));
  REQUIRE(preset.plan(t.q_view(), t.k_view(), plan, memory).ok());
  CHECK(summarize(plan, preset.policies().near, mask::causal).density < 0.9);
  testing::result<float> planned(s);
  REQUIRE(
      preset.run(t.q_view(), t.k_view(), t.v_view(), plan, planned.out_view, planned.lses, memory)
          .ok());
  CHECK(planned.out == call(preset.with(crossover::never)));
}
