#include "support/compare_plans.hpp"
#include "support/run.hpp"

using namespace testing_support;

namespace {

double const scales[] = {0, 1, 0.05, 0.5, 1e-30};

// A composition on both backends: the plans, and what comes out of them.
template <class T, class Attention, class Reference>
void check_composition(Attention const& fast, Reference const& slow, testing::tensors<T> const& t,
                       std::string const& what) {
  attention_shape const& s = t.shape;
  workspace<> memory(fast.template workspace_bytes<T>(s));
  auto const a = fast.make_plan(s), b = slow.make_plan(s);
  REQUIRE_MESSAGE(fast.plan(t.q_view(), t.k_view(), a, memory).ok(), what);
  REQUIRE_MESSAGE(slow.plan(t.q_view(), t.k_view(), b, workspace<>{}).ok(), what);
  check_same_plan(a, b, {60, 100, 1e-3f}, what);
  testing::result<T> x(s), y(s);
  REQUIRE(fast(t.q_view(), t.k_view(), t.v_view(), x.out_view, x.lses, memory).ok());
  REQUIRE(slow.run(t.q_view(), t.k_view(), t.v_view(), a, y.out_view, y.lses, workspace<>{}).ok());
  CHECK_MESSAGE(testing::within_rule<T>(testing::compare(x.out, y.out)), what);
  CHECK_MESSAGE(testing::compare(x.lse, y.lse).largest < 1e-3, what);
}

template <class T>
void check_compositions(attention_shape const& s, double scale, mask limit) {
  auto const t = testing::random_tensors<T>(s, 31, 1.5f);
  std::string const what = "scale " + std::to_string(scale) + " D " + std::to_string(s.dim);
  auto const both = [&](auto const& change) {
    check_composition(
        change(attention{backend::cpu{}}).with(softmax_scale{scale}).with(limit),
        change(attention{backend::reference{}}).with(softmax_scale{scale}).with(limit), t, what);
  };
  both([](auto const& a) {
    return a.with(near_field{12, 2}).with(chunk{40}).with(budget::per_head{.recall = 0.7f});
  });
  for (auto const by : {far_estimate::kind::moments, far_estimate::kind::upper_bound}) {
    far_estimate const estimate{.by = by, .block = 16};
    both([&](auto const& a) {
      return a.with(near_field{12, 2})
          .with(chunk{40})
          .with(selector::far_mass{.epsilon = 0.3f, .estimate = estimate})
          .with(rescue::coverage{.least = 0.6f, .estimate = estimate})
          .with(budget::flattest_head{.recall = 0.7f});
    });
  }
  both([](auto const& a) {
    return a.with(near_field{8, 1})
        .with(selector::sink_contrast{.tau = 0.52f, .range = pool_range::past})
        .with(budget::fixed{.count = 20});
  });
}

}  // namespace

TEST_CASE_TEMPLATE("every softmax scale is that of the oracles", T, float, double, bfloat16, half) {
  attention_shape const s{2, 4, 2, 70, 90, 40};
  for (double const scale : scales) {
    auto const t = testing::random_tensors<T>(s, 11);
    for (mask const limit : {mask::causal, mask::full}) {
      attention_plan<> const plan(s, chunk{32});
      testing::fill_plan(plan, testing::plan_kind::random, 3);
      check_run(t, plan, {9, 2}, limit, {}, false, "scale " + std::to_string(scale), 1, {scale});
    }
  }
}

TEST_CASE("estimates, contrast and probes are made of scaled logits") {
  for (double const scale : {0.0, 1.0, 0.05, 0.5}) {
    for (mask const limit : {mask::causal, mask::full}) {
      check_compositions<float>({1, 4, 2, 150, 170, 24}, scale, limit);
    }
  }
  check_compositions<double>({1, 2, 1, 90, 90, 5}, 0.3, mask::causal);
  check_compositions<half>({1, 2, 1, 90, 90, 33}, 0.1, mask::full);
}

TEST_CASE("another scale is another plan") {
  attention_shape const s{1, 2, 1, 120, 120, 16};
  auto const t = testing::random_tensors<float>(s, 4, 1.5f);
  auto const attend = attention{backend::cpu{}}
                          .with(near_field{8, 1})
                          .with(selector::far_mass{.epsilon = 0.4f})
                          .with(budget::per_head{.recall = 0.8f});
  auto const recall_of = [&](double scale) {
    auto const a = attend.with(softmax_scale{scale});
    workspace<> memory(a.workspace_bytes(s));
    auto const plan = a.make_plan(s);
    REQUIRE(a.plan(t.q_view(), t.k_view(), plan, memory).ok());
    return plan.view().kept_counts[0];
  };
  CHECK(recall_of(0.01) > recall_of(0.25));
  CHECK(recall_of(0.25) > recall_of(3));
  CHECK(recall_of(0) == recall_of(0.25));
}

// What a backend that cannot take D asks for.
TEST_CASE_TEMPLATE("zero columns and the scale of the unpadded call change nothing", T, float,
                   double, bfloat16, half) {
  for (auto const& [dim, to] : {std::pair{20, 24}, std::pair{80, 128}, std::pair{3, 64}}) {
    attention_shape const s{1, 4, 2, 60, 75, dim};
    attention_shape const wide{1, 4, 2, 60, 75, to};
    auto const t = testing::random_tensors<T>(s, 12);
    testing::tensors<T> padded{wide, {}, {}, {}};
    auto const pad = [&, d = dim, w = to](std::vector<T> const& from, std::vector<T>& into) {
      std::size_t const rows = from.size() / static_cast<std::size_t>(d);
      into.assign(rows * static_cast<std::size_t>(w), T(accumulator_t<T>(0)));
      for (std::size_t n = 0; n < from.size(); ++n) {
        into[n / static_cast<std::size_t>(d) * static_cast<std::size_t>(w) +
             n % static_cast<std::size_t>(d)] = from[n];
      }
    };
    pad(t.q, padded.q), pad(t.k, padded.k), pad(t.v, padded.v);
    auto const attend = attention{backend::cpu{}}
                            .with(near_field{10, 2})
                            .with(chunk{25})
                            .with(selector::far_mass{.epsilon = 0.3f})
                            .with(rescue::coverage{.least = 0.6f})
                            .with(budget::per_head{.recall = 0.8f});
    auto const scaled = attend.with(softmax_scale{1 / std::sqrt(static_cast<double>(dim))});
    testing::result<T> a(s), b(wide);
    workspace<> one(attend.template workspace_bytes<T>(s)),
        two(scaled.template workspace_bytes<T>(wide));
    REQUIRE(attend(t.q_view(), t.k_view(), t.v_view(), a.out_view, a.lses, one).ok());
    REQUIRE(
        scaled(padded.q_view(), padded.k_view(), padded.v_view(), b.out_view, b.lses, two).ok());
    std::vector<T> cut;
    for (std::size_t n = 0; n < b.out.size(); ++n) {
      if (static_cast<int>(n) % to < dim) cut.push_back(b.out[n]);
    }
    CHECK(testing::within_rule<T>(testing::compare(cut, a.out)));
    CHECK(testing::compare(b.lse, a.lse).largest < 1e-5);

    // The step after it.
    kv_cache<backend::cpu, T> narrow_cache({.kv_heads = 2, .dim = dim, .max_tokens = 90});
    kv_cache<backend::cpu, T> wide_cache({.kv_heads = 2, .dim = to, .max_tokens = 90});
    auto const step = [&](auto const& f, auto const& x, auto& cache, auto& r) {
      int id = 0;
      REQUIRE(cache.add(id).ok());
      auto const tokens = [](tensor_view<T const> const& y) {
        return tensor_view<T const, host, 3>(y.data, {2, 75, y.extent(3)});
      };
      REQUIRE(cache.append(id, tokens(x.k_view()), tokens(x.v_view()), segment::visual).ok());
      int const d = x.shape.dim;
      tensor_view<T const> const q(x.q.data(), {1, 4, 1, d}, {0, 60 * d, d, 1});
      workspace<> memory(f.decode_workspace_bytes(cache, 1, 4));
      REQUIRE(f.decode(q, cache, r.out_view, r.lses, memory).ok());
    };
    auto const fetch = slim::head_fetch{.threshold = 0.5f, .any = false};
    testing::result<T> x({1, 4, 2, 1, 75, dim}), y({1, 4, 2, 1, 75, to});
    step(attend.with(fetch), t, narrow_cache, x);
    step(scaled.with(fetch), padded, wide_cache, y);
    cut.clear();
    for (std::size_t n = 0; n < y.out.size(); ++n) {
      if (static_cast<int>(n) % to < dim) cut.push_back(y.out[n]);
    }
    CHECK(testing::within_rule<T>(testing::compare(cut, x.out)));
    CHECK(testing::compare(y.lse, x.lse).largest < 1e-5);
  }
}
