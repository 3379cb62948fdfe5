#include "support/run.hpp"

#include <cstdlib>

using namespace testing_support;

namespace {

template <class T>
void one_case(std::uint64_t seed) {
  testing::generator g(seed);
  int const kv_heads = g.between(1, 3);
  attention_shape const s{g.between(1, 2),   kv_heads * g.between(1, 5), kv_heads,
                          g.between(0, 140), g.between(0, 300),          8 * g.between(1, 12)};
  near_field const near{g.below(4) == 0 ? 0 : g.between(0, 150),
                        g.below(3) == 0 ? g.between(0, 320) : g.between(0, 5)};
  mask const limit = g.below(3) == 0 ? mask::full : mask::causal;
  int const rows = g.below(3) == 0 ? 0 : g.between(1, 90);
  auto const t = testing::random_tensors<T>(s, g.bits(), 0.2f + static_cast<float>(g.below(4)));
  attention_plan<> const plan(s, chunk{rows});
  testing::fill_plan(plan, testing::plan_kinds[g.below(10)], g.bits());
  std::vector<int> q_lengths, kv_lengths;
  for (int b = 0; b < s.batch; ++b) {
    q_lengths.push_back(g.between(-1, s.q_tokens + 1));
    kv_lengths.push_back(g.between(-1, s.kv_tokens + 1));
  }
  inputs<> in;
  if (g.below(3) == 0) in.q_lengths = {q_lengths.data(), {s.batch}};
  if (g.below(3) == 0) in.kv_lengths = {kv_lengths.data(), {s.batch}};
  std::string const what = describe(s, near, limit, rows, seed);
  INFO("repeat with OMNISPARSE_SEED=" << seed << ": " << what);
  check_run(t, plan, near, limit, in, g.below(2) == 0, what);

  // A planned call of the same shape: valid, and one call is plan then run.
  auto const attend =
      attention{backend::cpu{g.between(1, 3)}}
          .with(near)
          .with(limit)
          .with(chunk{rows})
          .with(selector::far_mass{
              .epsilon = 0.3f,
              .estimate = {.block = g.between(1, 70), .per_level = g.between(1, 9)}})
          .with(rescue::coverage{.least = 0.7f, .estimate = {.block = g.between(1, 70)}})
          .with(budget::flattest_head{.recall = 0.8f});
  char const* broken = testing::plan_is_valid(attend, t, in);
  if (broken == nullptr) broken = testing::plan_then_run_is_one_call(attend, t, in);
  CHECK_MESSAGE(broken == nullptr, std::string(broken == nullptr ? "" : broken));
}

void any_case(std::uint64_t seed) {
  switch (seed % 4) {
    case 0:
      return one_case<float>(seed);
    case 1:
      return one_case<double>(seed);
    case 2:
      return one_case<bfloat16>(seed);
    default:
      return one_case<half>(seed);
  }
}

}  // namespace

TEST_CASE("random shapes, strides, plans and policies") {
  if (char const* const seed = std::getenv("OMNISPARSE_SEED")) {
    any_case(std::strtoull(seed, nullptr, 10));
    return;
  }
  for (std::uint64_t seed = 1; seed <= 60; ++seed) any_case(seed);
}
