#include "support/run.hpp"

using namespace testing_support;

namespace {

template <class T>
void check_shapes(std::uint64_t seed) {
  attention_shape const shapes[] = {{1, 1, 1, 1, 1, 8},     {1, 3, 1, 33, 33, 16},
                                    {2, 4, 2, 96, 97, 64},  {1, 7, 1, 31, 64, 40},
                                    {1, 2, 2, 65, 130, 24}, {1, 6, 2, 200, 300, 32},
                                    {2, 2, 1, 40, 17, 8},   {1, 4, 4, 100, 257, 128},
                                    {1, 1, 1, 5, 513, 256}, {1, 16, 1, 13, 31, 16}};
  near_field const nears[] = {{0, 0}, {1, 0}, {16, 4}, {31, 1}, {64, 0}, {5, 300}, {1000, 3}};
  int const chunks[] = {0, 1, 7, 32, 64};
  testing::generator g(seed);
  for (auto const& s : shapes) {
    for (auto const kind : testing::plan_kinds) {
      near_field const near = nears[g.below(7)];
      mask const limit = g.below(3) == 0 ? mask::full : mask::causal;
      int const rows = chunks[g.below(5)];
      auto const t = testing::random_tensors<T>(s, g.bits(), 0.5f + static_cast<float>(g.below(3)));
      attention_plan<> const plan(s, chunk{rows});
      testing::fill_plan(plan, kind, g.bits());
      std::vector<int> q_lengths, kv_lengths;
      for (int b = 0; b < s.batch; ++b) {
        q_lengths.push_back(g.between(0, s.q_tokens));
        kv_lengths.push_back(g.between(0, s.kv_tokens));
      }
      inputs<> in;
      if (g.below(2) == 0) {
        in.q_lengths = {q_lengths.data(), {s.batch}};
        in.kv_lengths = {kv_lengths.data(), {s.batch}};
      }
      check_run(t, plan, near, limit, in, g.below(2) == 0, describe(s, near, limit, rows, seed));
    }
  }
}

}  // namespace

TEST_CASE_TEMPLATE("the fast path equals the oracles on any plan", T, float, double, bfloat16,
                   half) {
  check_shapes<T>(17 + sizeof(T));
}

TEST_CASE_TEMPLATE("any head dimension, odd ones too", T, float, double, bfloat16, half) {
  testing::generator g(23);
  std::vector<int> dims = {1, 2, 3, 5, 7, 9, 15, 17, 20, 31, 33, 72, 80, 100, 127, 129};
  for (int n = 0; n < 10; ++n) dims.push_back(g.between(1, 200));
  for (int const dim : dims) {
    attention_shape const s{1, 4, 2, g.between(1, 60), g.between(1, 90), dim};
    auto const t = testing::random_tensors<T>(s, g.bits(), 1.f);
    attention_plan<> const plan(s, chunk{20});
    testing::fill_plan(plan, testing::plan_kind::random, g.bits());
    mask const limit = g.below(2) == 0 ? mask::full : mask::causal;
    check_run(t, plan, {6, 2}, limit, {}, g.below(2) == 0, describe(s, {6, 2}, limit, 20, 23));
  }
}

TEST_CASE("logits of 1e4 and masked first tiles give no NaN") {
  attention_shape const s{1, 2, 1, 300, 600, 16};
  auto t = testing::random_tensors<float>(s, 5, 2000.f);
  for (auto const kind : {testing::plan_kind::random, testing::plan_kind::last_token}) {
    attention_plan<> const plan(s, chunk{50});
    testing::fill_plan(plan, kind, 1);
    // A logit of 1e4 is rounded to 1e-3 in float, and its exponential by as much.
    check_run(t, plan, {0, 0}, mask::causal, {}, false, "huge logits", 200);
    check_run(t, plan, {3, 1}, mask::full, {}, true, "huge logits, full", 200);
  }
}

TEST_CASE("NaN and infinity reach only the rows that see them") {
  attention_shape const s{1, 3, 1, 150, 150, 24};
  for (float const bad : {__builtin_nanf(""), __builtin_inff()}) {
    for (bool const in_v : {true, false}) {
      auto const clean = testing::random_tensors<float>(s, 5);
      auto dirty = clean;
      int const at = 90;
      for (int d = 0; d < s.dim; ++d)
        (in_v ? dirty.v : dirty.k)[static_cast<std::size_t>(at * s.dim + d)] = bad;
      attention_plan<> const plan(s, chunk{40});
      testing::fill_plan(plan, testing::plan_kind::random, 2);
      near_field const near{10, 2};
      auto const attend = attention{backend::cpu{}}.with(near);
      workspace<> memory(attend.workspace_bytes(s));
      testing::result<float> a(s), b(s);
      REQUIRE(
          attend
              .run(clean.q_view(), clean.k_view(), clean.v_view(), plan, a.out_view, a.lses, memory)
              .ok());
      REQUIRE(
          attend
              .run(dirty.q_view(), dirty.k_view(), dirty.v_view(), plan, b.out_view, b.lses, memory)
              .ok());
      int unseen = 0;
      for (int h = 0; h < 3; ++h) {
        auto const m = oracle::mask_of(plan, 10, 2, true, 0, h, 150, 150);
        for (int i = 0; i < 150; ++i) {
          if (m(i, at) > 0) {
            if (in_v) CHECK_FALSE(is_finite(b.out_view(0, h, i, 0)));
            continue;
          }
          ++unseen;
          for (int d = 0; d < s.dim; ++d) {
            REQUIRE(std::abs(a.out_view(0, h, i, d) - b.out_view(0, h, i, d)) < 1e-5f);
          }
        }
      }
      CHECK(unseen > 100);
    }
  }
}

TEST_CASE("bits depend neither on threads nor on what else runs") {
  attention_shape const s{2, 6, 2, 210, 210, 32};
  auto const t = testing::random_tensors<float>(s, 5);
  auto const with_threads = [&](int threads, testing::result<float>& r) {
    auto const attend = attention{backend::cpu{threads}}
                            .with(near_field{20, 2})
                            .with(chunk{64})
                            .with(selector::far_mass{.epsilon = 0.3f})
                            .with(rescue::coverage{.least = 0.6f})
                            .with(budget::flattest_head{.recall = 0.7f});
    workspace<> memory(attend.workspace_bytes(s));
    REQUIRE(attend(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, memory).ok());
  };
  testing::result<float> one(s);
  with_threads(1, one);
  for (int threads : {2, 3, 8}) {
    for (int repeat = 0; repeat < 5; ++repeat) {
      testing::result<float> many(s);
      with_threads(threads, many);
      CHECK(many.out == one.out);
      CHECK(many.lse == one.lse);
    }
  }
}

TEST_CASE("a prefill cut at chunk borders equals one call") {
  attention_shape const s{1, 4, 2, 256, 256, 16};
  auto const t = testing::random_tensors<float>(s, 8);
  auto const attend = attention{backend::cpu{}}
                          .with(near_field{16, 2})
                          .with(chunk{64})
                          .with(selector::far_mass{.epsilon = 0.3f})
                          .with(rescue::coverage{.least = 0.6f})
                          .with(budget::per_head{.recall = 0.8f});
  testing::result<float> whole(s), cut(s);
  workspace<> memory(attend.workspace_bytes(s));
  REQUIRE(attend(t.q_view(), t.k_view(), t.v_view(), whole.out_view, whole.lses, memory).ok());
  for (auto const& [first, last] : {std::pair{0, 64}, std::pair{64, 192}, std::pair{192, 256}}) {
    auto const rows = [&, f = first, l = last](auto const& x, int head_count) {
      return std::remove_cvref_t<decltype(x)>(x.at(0, 0, f), {1, head_count, l - f, 16},
                                              {x.stride(0), x.stride(1), x.stride(2), 1});
    };
    auto const keys = [&, l = last](tensor_view<float const> const& x) {
      return tensor_view<float const>(x.data, {1, 2, l, 16},
                                      {x.stride(0), x.stride(1), x.stride(2), 1});
    };
    lse_view<float> const lses(cut.lses.at(0, 0, first), {1, 4, last - first}, {1024, 256, 1});
    REQUIRE(attend(rows(t.q_view(), 4), keys(t.k_view()), keys(t.v_view()), rows(cut.out_view, 4),
                   lses, memory)
                .ok());
  }
  CHECK(testing::compare(cut.out, whole.out).largest < 1e-6);
}
