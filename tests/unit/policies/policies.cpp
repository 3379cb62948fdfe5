#include <omnisparse/presets.hpp>
#include <omnisparse/testing/archetypes.hpp>

#include <doctest/doctest.h>

using namespace omnisparse;

TEST_CASE("selectors") {
  CHECK(selector::all{}.keeps({}, {3, 0}));
  CHECK_FALSE(selector::none{}.keeps({}, {3, 0}));
  selector::sink_contrast const contrast{.tau = 0.5f, .keep_lazy = 8};
  CHECK(contrast.keeps({.share = 0.51f}, {3, 0}));
  CHECK_FALSE(contrast.keeps({.share = 0.5f}, {3, 0}));
  CHECK(contrast.keeps({.share = 0.f}, {16, 0}));
  CHECK_FALSE(selector::sink_contrast{}.keeps({.share = 0.f}, {16, 0}));
  CHECK(selector::far_mass{.epsilon = 0.05f}.keeps({.far_mass = 0.051f}, {3, 0}));
  CHECK_FALSE(selector::far_mass{.epsilon = 0.05f}.keeps({.far_mass = 0.05f}, {3, 0}));
}

TEST_CASE("rescues") {
  CHECK_FALSE(rescue::none{}.rescues({}, {3, 0}));
  CHECK(rescue::coverage{.least = 0.5f}.rescues({.share = 0.49f}, {3, 0}));
  CHECK_FALSE(rescue::coverage{.least = 0.5f}.rescues({.share = 0.5f}, {3, 0}));
}

TEST_CASE("column_mass probes the last rows and an even stride of the others") {
  scorer::column_mass const s{.last = 16, .strided = 48};
  for (int rows : {1, 10, 64, 100, 2048}) {
    int probes = 0;
    for (int i = 0; i < rows; ++i) {
      if (i >= rows - 16) CHECK(s.probes(i, rows));
      probes += s.probes(i, rows);
    }
    CHECK(probes >= (rows < 32 ? rows : 32));
    CHECK(probes <= 16 + 2 * 48);
  }
  scorer::column_mass const last_only{.last = 2, .strided = 0};
  CHECK(last_only.probes(8, 10));
  CHECK_FALSE(last_only.probes(7, 10));
  CHECK(s.score({.mass = 3.f, .rows = 6}, {}) == 3.f);
  CHECK(scorer::column_mass{.normalise = true}.score({.mass = 3.f, .rows = 6}, {}) == 0.5f);
  CHECK(scorer::column_mass{.normalise = true}.score({.mass = 0.f, .rows = 0}, {}) == 0.f);
}

TEST_CASE("budgets") {
  int const reach[3] = {7, 30, 20};
  observation::all_reaches const seen{reach, 3, 2};
  CHECK(budget::flattest_head{}.tokens(seen, {100}) == 20);
  CHECK(budget::guaranteed{}.tokens(seen, {100}) == 30);
  CHECK(budget::per_head{}.tokens({9}, {100}) == 9);
  CHECK(budget::fixed{.count = 5}.tokens({}, {100}) == 5);
  CHECK(budget::ratio{.share = 0.25f}.tokens({}, {101}) == 26);
  CHECK(budget::ratio{.share = 0.f}.tokens({}, {101}) == 0);
  CHECK(budget::ratio{.share = 1.f}.tokens({}, {101}) == 101);
  CHECK(budget::dense{}.tokens({}, {101}) == 101);
}

TEST_CASE("slimmers") {
  CHECK(slim::none{}.stores({.position = 3}));
  CHECK(slim::none{}.fetches({}));
  CHECK(slim::kept_tokens{}.stores({.kind = segment::visual, .kept = true}));
  CHECK_FALSE(slim::kept_tokens{}.stores({.kind = segment::visual, .kept = false}));
  CHECK(slim::kept_tokens{}.stores({.kind = segment::text, .kept = false}));
  CHECK(slim::head_fetch{.threshold = 0.5f}.fetches({.share = 0.6f}));
  CHECK_FALSE(slim::head_fetch{.threshold = 0.5f}.fetches({.share = 0.5f}));
}

TEST_CASE("with fills the seat of each question a policy answers") {
  auto const a = attention{backend::cpu{}}
                     .with(selector::far_mass{.epsilon = 0.2f})
                     .with(budget::fixed{.count = 9})
                     .with(slim::kept_tokens{})
                     .with(slim::head_fetch{.threshold = 0.7f})
                     .with(near_field{.window = 5, .sinks = 1})
                     .with(mask::full)
                     .with(chunk{3});
  CHECK(a.policies().selector.epsilon == 0.2f);
  CHECK(a.policies().budget.count == 9);
  static_assert(std::is_same_v<decltype(a.policies().storer), slim::kept_tokens>);
  CHECK(a.policies().fetcher.threshold == 0.7f);
  CHECK(a.policies().near.window == 5);
  CHECK(a.policies().limit == mask::full);
  CHECK(a.policies().rows.rows == 3);
  auto const back = a.with(slim::none{});
  static_assert(std::is_same_v<decltype(back.policies().storer), slim::none>);
  static_assert(std::is_same_v<decltype(back.policies().fetcher), slim::none>);
  static_assert(query_selector<testing::mostly_far> && row_rescue<testing::every_tenth> &&
                token_scorer<testing::peak_share> && kv_budget<testing::greedy>);
}

TEST_CASE("presets") {
  auto const published = presets::published(backend::cpu{});
  CHECK(published.policies().near.window == 0);
  static_assert(std::is_same_v<decltype(published.policies().selector), selector::sink_contrast>);
  CHECK(presets::local_first(backend::cpu{}, 4096).policies().near.window == 128);
  CHECK(presets::local_first(backend::cpu{}, 1 << 20).policies().near.window == 1024);
  CHECK(presets::local_first(backend::cpu{}, 100).policies().rows.rows == 512);
  CHECK(presets::local_first(backend::cpu{}, 131072).policies().rows.rows == 16384);
  CHECK(presets::local_first(backend::cpu{}, 100, {.recall = 0.9f}).policies().budget.recall ==
        0.9f);
}
