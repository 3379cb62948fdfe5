#include "support/run.hpp"

#include <omnisparse/presets.hpp>

#include <cstring>
#include <limits>

using namespace testing_support;

namespace {

template <class T>
T of(double x) {
  return static_cast<T>(static_cast<accumulator_t<T>>(x));
}

template <class T>
bool same_bits(std::vector<T> const& a, std::vector<T> const& b) {
  return std::memcmp(a.data(), b.data(), sizeof(T) * a.size()) == 0;
}

// What a place that nobody may look at may hold: the n-th kind of garbage.
constexpr int kinds_of_garbage = 5;
template <class T>
T garbage(int kind, testing::generator& g) {
  if (kind == 0) return of<T>(__builtin_nan(""));
  if (kind == 1) return of<T>(__builtin_huge_val());
  if (kind == 2) return of<T>(-__builtin_huge_val());
  if (kind == 3) return std::is_same_v<T, half> ? of<T>(65504) : of<T>(1e38);
  if constexpr (sizeof(T) == 8) return __builtin_bit_cast(T, g.bits());
  else if constexpr (sizeof(T) == 4)
    return __builtin_bit_cast(T, static_cast<std::uint32_t>(g.bits()));
  else return __builtin_bit_cast(T, static_cast<std::uint16_t>(g.bits()));
}

template <class Backend, class Run>
void for_each_composition(Run const& run) {
  auto const base = attention{Backend{}}.with(near_field{9, 2}).with(chunk{32});
  run("dense", attention{Backend{}});
  run("window only", base.with(selector::none{}));
  run("fixed", base.with(budget::fixed{.count = 12}));
  run("local first",
      presets::local_first(Backend{}, 100, {.chunk_rows = 32, .below = crossover::never})
          .with(near_field{9, 2}));
  run("published", presets::published(Backend{}, {.near = {9, 2}, .below = crossover::never}));
  run("far mass",
      base.with(selector::far_mass{.epsilon = 0.3f, .estimate = {.block = 16}})
          .with(rescue::coverage{.least = 0.6f})
          .with(budget::flattest_head{.recall = 0.7f, .flatness = flatness_by::top_share}));
  far_estimate const bound{.by = far_estimate::kind::upper_bound, .block = 8};
  run("bound", base.with(selector::far_mass{.epsilon = 0.3f, .estimate = bound})
                   .with(rescue::coverage{.least = 0.6f, .estimate = bound})
                   .with(budget::per_head{.recall = 0.7f})
                   .with(scorer::column_mass{.normalise = true}));
}

// Every element of q, k and v that lies beyond a length, replaced.
template <class T>
void check_padding(mask limit) {
  attention_shape const s{2, 4, 2, 70, 90, 20};
  auto const clean = testing::random_tensors<T>(s, 5, 1.5f);
  std::vector<int> const q_lengths = {50, 70}, kv_lengths = {61, 83};
  std::vector<segment> kinds(180, segment::visual);
  for (std::size_t n = 0; n < kinds.size(); n += 9) kinds[n] = segment::text;
  inputs<> in;
  in.q_lengths = {q_lengths.data(), {2}};
  in.kv_lengths = {kv_lengths.data(), {2}};
  testing::generator g(3);
  for (bool const with_text : {false, true}) {
    if (with_text) in.segments = {kinds.data(), {2, 90}};
    for_each_composition<backend::cpu>([&](char const* what, auto const& composed) {
      auto const attend = composed.with(limit);
      std::vector<unsigned char> memory(attend.template workspace_bytes<T>(s));
      std::string plan_bits;
      testing::result<T> one(s);
      for (int kind = -1; kind < kinds_of_garbage; ++kind) {
        auto t = clean;
        auto const spoil = [&](std::vector<T>& x, int heads, int tokens,
                               std::vector<int> const& lengths) {
          for (std::size_t n = 0; n < x.size() && kind >= 0; ++n) {
            int const row = static_cast<int>(n) / s.dim, b = row / (heads * tokens);
            if (row % tokens >= lengths[static_cast<std::size_t>(b)]) x[n] = garbage<T>(kind, g);
          }
        };
        spoil(t.q, 4, 70, q_lengths), spoil(t.k, 2, 90, kv_lengths), spoil(t.v, 2, 90, kv_lengths);
        std::fill(memory.begin(), memory.end(), static_cast<unsigned char>(0x7f + kind));
        workspace_view<> const ws{memory.data(), memory.size()};
        attention_plan<> const plan = attend.make_plan(s);
        REQUIRE(attend.plan(t.q_view(), t.k_view(), plan, ws, in).ok());
        std::string const bits = to_bytes(plan);
        // What a list's memory holds behind its entries means nothing.
        plan_view<> const view = plan;
        for (std::int64_t l = 0; l < view.list_count(); ++l) {
          for (int n = view.kept_counts[l]; n < view.capacity; ++n) {
            view.kept[l * view.capacity + n] = static_cast<int>(g.bits());
          }
        }
        testing::result<T> x(s), y(s);
        REQUIRE(attend(t.q_view(), t.k_view(), t.v_view(), x.out_view, x.lses, ws, in).ok());
        REQUIRE(
            attend.run(t.q_view(), t.k_view(), t.v_view(), plan, y.out_view, y.lses, ws, in).ok());
        if (kind < 0) {
          one.out = x.out;
          one.lse = x.lse;
          plan_bits = bits;
        }
        CHECK_MESSAGE(bits == plan_bits, what << ", garbage " << kind);
        CHECK_MESSAGE(same_bits(x.out, one.out), what << ", garbage " << kind);
        CHECK_MESSAGE(same_bits(x.lse, one.lse), what << ", garbage " << kind);
        CHECK_MESSAGE(same_bits(y.lse, one.lse), what << ", garbage " << kind);
        CHECK_MESSAGE(same_bits(y.out, one.out), what << ", garbage " << kind);
      }
    });
  }
}

// A cache slimmed by a plan of a shorter sequence, then trimmed; its idle memory holds garbage.
template <class T>
void check_idle_slots(int kind) {
  attention_shape const s{1, 6, 2, 80, 100, 33};
  auto const clean = testing::random_tensors<T>(s, 6, 1.5f);
  testing::generator g(8);
  auto const attend = attention{backend::cpu{}}
                          .with(near_field{9, 2})
                          .with(budget::fixed{.count = 12})
                          .with(slim::kept_tokens{})
                          .with(slim::head_fetch{.threshold = 0.5f, .any = false});
  int const kv_length = 71, q_length = 60;
  inputs<> in;
  in.q_lengths = {&q_length, {1}};
  in.kv_lengths = {&kv_length, {1}};
  workspace<> memory(attend.template workspace_bytes<T>(s));
  testing::result<T> one({1, 6, 2, 1, 1, 33}), other({1, 6, 2, 1, 1, 33});
  for (bool const spoiled : {false, true}) {
    auto t = clean;
    kv_cache<backend::cpu, T> cache(
        {.sequences = 2, .kv_heads = 2, .dim = 33, .max_tokens = 200, .page_tokens = 24});
    auto const& ref = cache.ref();
    if (spoiled) {
      std::ptrdiff_t const size = std::ptrdiff_t{cache.pages()} * ref.page_tokens * ref.dim +
                                  std::ptrdiff_t{kv_cache_slack / sizeof(T)};
      for (std::ptrdiff_t n = 0; n < size; ++n) {
        ref.keys[n] = garbage<T>(kind, g);
        ref.values[n] = garbage<T>(kind, g);
      }
      for (int n = 0; n < cache.pages() * ref.page_tokens; ++n) {
        ref.positions[n] = static_cast<int>(g.bits());
      }
      for (std::size_t n = 0; n < t.k.size(); ++n) {
        if (static_cast<int>(n) / s.dim % 100 < kv_length) continue;
        t.k[n] = garbage<T>(kind, g);
        t.v[n] = garbage<T>(kind, g);
      }
    }
    int id = 0;
    REQUIRE(cache.add(id).ok());
    attention_plan<> const plan = attend.make_plan(s);
    REQUIRE(attend.plan(t.q_view(), t.k_view(), plan, memory, in).ok());
    REQUIRE(attend.slim(t.k_view(), t.v_view(), plan, cache, id, in).ok());
    REQUIRE(cache.keep_if(id, [](int head, int j) { return (j + head) % 3 != 0; }).ok());
    tensor_view<T const> const q(t.q.data(), {1, 6, 1, 33}, {0, 80 * 33, 33, 1});
    std::vector<unsigned char> own(attend.decode_workspace_bytes(cache, 1, 6),
                                   spoiled ? 0xff : 0x7f);
    testing::result<T>& r = spoiled ? other : one;
    REQUIRE(
        attend.decode(q, cache, r.out_view, r.lses, workspace_view<>{own.data(), own.size()}).ok());
    CHECK(is_finite(static_cast<double>(r.out[0])));
  }
  CHECK(same_bits(one.out, other.out));
  CHECK(same_bits(one.lse, other.lse));
}

// A prefill's rows and, of the same numbers, a step for each row of a head over all keys.
template <class T>
struct outputs {
  testing::result<T> prefill, step, reference, reference_step;

  explicit outputs(testing::tensors<T> const& t, softmax_scale scale = {})
      : prefill(t.shape),
        step(last_row(t.shape)),
        reference(t.shape),
        reference_step(last_row(t.shape)) {
    attend_both<backend::cpu>(t, scale, prefill, step);
    attend_both<backend::reference>(t, scale, reference, reference_step);
  }
  static attention_shape last_row(attention_shape s) {
    s.q_tokens = 1;
    return s;
  }
  template <class Backend>
  static void attend_both(testing::tensors<T> const& t, softmax_scale scale,
                          testing::result<T>& whole, testing::result<T>& step) {
    attention_shape const& s = t.shape;
    auto const attend = attention{Backend{}}.with(scale);
    workspace<> memory(attend.template workspace_bytes<T>(s));
    REQUIRE(attend(t.q_view(), t.k_view(), t.v_view(), whole.out_view, whole.lses, memory).ok());
    kv_cache<Backend, T> cache({.kv_heads = s.kv_heads, .dim = s.dim, .max_tokens = 9000});
    int id = 0;
    REQUIRE(cache.add(id).ok());
    auto const tokens = [&](tensor_view<T const> const& x, int first, int last) {
      return tensor_view<T const, host, 3>(x.at(0, 0, first), {s.kv_heads, last - first, s.dim},
                                           {x.stride(1), x.stride(2), 1});
    };
    int const middle = s.kv_tokens / 3;
    REQUIRE(
        cache
            .append(id, tokens(t.k_view(), 0, middle), tokens(t.v_view(), 0, middle), segment::text)
            .ok());
    REQUIRE(cache
                .append(id, tokens(t.k_view(), middle, s.kv_tokens),
                        tokens(t.v_view(), middle, s.kv_tokens), segment::visual)
                .ok());
    tensor_view<T const> const q(t.q_view().at(0, 0, s.q_tokens - 1), {1, s.q_heads, 1, s.dim},
                                 {0, t.q_view().stride(1), s.dim, 1});
    workspace<> own(attend.decode_workspace_bytes(cache, 1, s.q_heads));
    REQUIRE(attend.decode(q, cache, step.out_view, step.lses, own).ok());
  }
};

template <class T>
testing::tensors<T> zeros(attention_shape const& s) {
  auto t = testing::random_tensors<T>(s, 1);
  for (auto* x : {&t.q, &t.k, &t.v}) std::fill(x->begin(), x->end(), of<T>(0));
  return t;
}

// The last row of everything, [dim].
template <class T>
void check_last_row(outputs<T> const& o, double out, double lse, char const* what) {
  int const rows = o.prefill.out_view.extent(2), dim = o.prefill.out_view.extent(3);
  for (auto const* r : {&o.prefill, &o.step, &o.reference, &o.reference_step}) {
    int const row = r == &o.prefill || r == &o.reference ? rows - 1 : 0;
    std::string const which = std::string(what) + (r == &o.prefill     ? ", prefill"
                                                   : r == &o.step      ? ", decode"
                                                   : r == &o.reference ? ", reference"
                                                                       : ", reference decode");
    double const x = static_cast<double>(r->out_view(0, 0, row, dim - 1));
    double const y = static_cast<double>(r->lses(0, 0, row));
    CHECK_MESSAGE(std::abs(x - out) <= 1e-2 * std::abs(out),
                  which << ": out " << x << " for " << out);
    CHECK_MESSAGE(is_finite(x), which);
    if (is_finite(lse)) CHECK_MESSAGE(std::abs(y - lse) <= 1e-5 * (1 + std::abs(lse)), which);
  }
}

}  // namespace

TEST_CASE_TEMPLATE("what lies beyond a length never matters", T, float, double, bfloat16, half) {
  check_padding<T>(mask::causal);
  check_padding<T>(mask::full);
}

TEST_CASE_TEMPLATE("what idle slots hold never matters", T, float, double, bfloat16, half) {
  for (int kind = 0; kind < kinds_of_garbage; ++kind) check_idle_slots<T>(kind);
}

TEST_CASE_TEMPLATE("a NaN shows in each row that sees it and in no other", T, float, double,
                   bfloat16, half) {
  attention_shape const s{1, 3, 1, 120, 120, 21};
  auto const clean = testing::random_tensors<T>(s, 5);
  attention_plan<> const plan(s, chunk{40});
  testing::fill_plan(plan, testing::plan_kind::random, 2);
  int const at = 70;
  for (int const where : {0, 1, 2}) {  // q, k, v; of one element only
    auto dirty = clean;
    auto& x = where == 0 ? dirty.q : where == 1 ? dirty.k : dirty.v;
    x[static_cast<std::size_t>(at * s.dim + 4)] = of<T>(__builtin_nan(""));
    auto const check = [&](auto const& attend) {
      workspace<> memory(attend.template workspace_bytes<T>(s));
      testing::result<T> a(s), b(s);
      REQUIRE(
          attend
              .run(clean.q_view(), clean.k_view(), clean.v_view(), plan, a.out_view, a.lses, memory)
              .ok());
      REQUIRE(
          attend
              .run(dirty.q_view(), dirty.k_view(), dirty.v_view(), plan, b.out_view, b.lses, memory)
              .ok());
      for (int h = 0; h < 3; ++h) {
        auto const m = oracle::mask_of(plan, 10, 2, true, 0, h, 120, 120);
        for (int i = 0; i < 120; ++i) {
          bool const sees = where == 0 ? h == 0 && i == at && m.row(i).sum() > 0 : m(i, at) > 0;
          for (int d = 0; d < s.dim; ++d) {
            CAPTURE(i);
            double const out = static_cast<double>(b.out_view(0, h, i, d));
            if (sees && (where < 2 || d == 4)) REQUIRE(is_nan(out));
            if (sees) continue;
            REQUIRE(is_finite(out));
            REQUIRE(std::abs(out - static_cast<double>(a.out_view(0, h, i, d))) < 1e-5);
          }
          if (where < 2) REQUIRE(is_nan(b.lses(0, h, i)) == sees);
          else REQUIRE(b.lses(0, h, i) == doctest::Approx(a.lses(0, h, i)).epsilon(1e-5));
        }
      }
    };
    check(attention{backend::cpu{}}.with(near_field{10, 2}));
    check(attention{backend::reference{}}.with(near_field{10, 2}));
  }
}

TEST_CASE_TEMPLATE("a NaN shows in a step that reads it", T, float, double, bfloat16, half) {
  for (int const where : {0, 1, 2, 3}) {  // q; one key; every key; one value
    auto t = testing::random_tensors<T>({1, 2, 1, 1, 700, 8}, 5);
    T const nan = of<T>(__builtin_nan(""));
    if (where == 0) t.q[3] = nan;
    if (where == 1) t.k[600 * 8] = nan;
    if (where == 2) std::fill(t.k.begin(), t.k.end(), nan);
    if (where == 3) t.v[600 * 8 + 7] = nan;
    outputs<T> const o(t);
    for (auto const* r : {&o.prefill, &o.step, &o.reference, &o.reference_step}) {
      CHECK(is_nan(static_cast<double>(r->out_view(0, 0, 0, 7))));
      CHECK(is_nan(static_cast<double>(r->out_view(0, 0, 0, 0))) == (where < 3));
      CHECK(is_nan(r->lses(0, 0, 0)) == (where < 3));
      CHECK(is_nan(r->lses(0, 1, 0)) == (where == 1 || where == 2));
    }
  }
}

TEST_CASE_TEMPLATE("finite input gives finite output: values", T, float, double, bfloat16, half) {
  double const huge = std::is_same_v<T, double> ? 1.7e308
                      : std::is_same_v<T, half> ? 65504
                                                : 3.3e38;
  int const n = 2000;
  // Many of equal weight.
  auto t = zeros<T>({1, 1, 1, 3, n, 9});
  std::fill(t.v.begin(), t.v.end(), of<T>(huge));
  check_last_row(outputs<T>(t), huge, std::log(double{n}), "equal values");
  // The same, and then one that outweighs them.
  for (std::size_t i = 0; i < 3; ++i) t.q[i * 9] = of<T>(30);
  t.k[static_cast<std::size_t>(n - 1) * 9] = of<T>(100);
  for (std::size_t d = 0; d < 9; ++d) t.v[static_cast<std::size_t>(n - 1) * 9 + d] = of<T>(1);
  check_last_row(outputs<T>(t), 1, 1000, "a value that outweighs");
  // Both signs.
  t = zeros<T>({1, 1, 1, 3, n, 9});
  for (std::size_t i = 0; i < t.v.size(); ++i) t.v[i] = of<T>(i / 9 < n / 2 ? huge : -huge);
  for (std::size_t d = 0; d < 9; ++d) t.v[d] = of<T>(-huge);
  outputs<T> const o(t);
  check_last_row(o, -huge / 1000, std::log(double{n}), "both signs");
}

TEST_CASE_TEMPLATE("finite input gives finite output: logits", T, float, double, bfloat16) {
  double const root = std::is_same_v<T, double> ? 1e170 : 1e22,
               step = std::is_same_v<T, double> ? 1e308 : 2e38;
  auto const last = [](auto& x, int n, int d) -> auto& {
    return x[static_cast<std::size_t>(n * 8 + d)];
  };
  // Beyond the range upwards, downwards, and both.
  for (double const sign : {1.0, -1.0}) {
    auto t = zeros<T>({1, 1, 1, 1, 90, 8});
    for (int n = 0; n < 90; ++n) {
      last(t.k, n, 0) = of<T>(sign * root * (n == 40 ? 3 : 2)), last(t.v, n, 7) = of<T>(n);
    }
    last(t.q, 0, 0) = of<T>(root);
    if (sign > 0) {
      check_last_row(outputs<T>(t), 40, __builtin_huge_val(), "huge logits");
    } else {
      last(t.k, 41, 0) = of<T>(-root);
      check_last_row(outputs<T>(t), 41, __builtin_huge_val(), "huge negative logits");
    }
  }
  // Each product is finite, their sum is 0, what comes between is not finite: that key is one of
  // two that weigh the same.
  for (double const sign : {1.0, -1.0}) {
    auto t = zeros<T>({1, 1, 1, 1, 700, 8});
    for (int d = 0; d < 8; ++d) last(t.q, 0, d) = of<T>(1);
    for (int n = 2; n < 700; ++n) last(t.k, n, 0) = of<T>(-1000);
    for (int d = 0; d < 8; ++d) last(t.k, 1, d) = of<T>(d < 4 ? sign * step : -sign * step);
    last(t.v, 1, 7) = of<T>(6);
    check_last_row(outputs<T>(t), 3, std::log(2.0), "a sum that is finite only at its end");
  }
  // A scale that makes them small again, and one that makes small ones large.
  auto t = zeros<T>({1, 1, 1, 1, 2, 8});
  last(t.q, 0, 0) = of<T>(root), last(t.v, 1, 7) = of<T>(1);
  last(t.k, 1, 0) = of<T>(std::is_same_v<T, double> ? 1e130 : root);
  double const whole = static_cast<double>(last(t.q, 0, 0)) * static_cast<double>(last(t.k, 1, 0));
  check_last_row(outputs<T>(t, {1 / whole}), std::exp(1.0) / (1 + std::exp(1.0)),
                 std::log(1 + std::exp(1.0)), "a small scale");
  last(t.q, 0, 0) = of<T>(1e10), last(t.k, 1, 0) = of<T>(1e10);
  check_last_row(outputs<T>(t, {1e30}), 1, __builtin_huge_val(), "a large scale");
}

TEST_CASE_TEMPLATE("plans of anything are valid", T, float, double, bfloat16, half) {
  attention_shape const s{1, 4, 2, 90, 100, 12};
  testing::generator g(12);
  for (int kind = 0; kind < kinds_of_garbage + 2; ++kind) {
    for (int const where : {0, 1, 2}) {
      auto t = testing::random_tensors<T>(s, 5, 1.5f);
      for (int n = 0; n < 4; ++n) {
        T const x = kind == kinds_of_garbage       ? of<T>(1e30)
                    : kind == kinds_of_garbage + 1 ? of<T>(-1e19)
                                                   : garbage<T>(kind, g);
        if (where != 1) t.q[static_cast<std::size_t>(g.below(static_cast<int>(t.q.size())))] = x;
        if (where != 0) t.k[static_cast<std::size_t>(g.below(static_cast<int>(t.k.size())))] = x;
      }
      auto const check = [&](char const* what, auto const& attend) {
        for (mask const limit : {mask::causal, mask::full}) {
          auto const a = attend.with(limit);
          workspace<> memory(a.template workspace_bytes<T>(s));
          attention_plan<> const plan = a.make_plan(s);
          REQUIRE(a.plan(t.q_view(), t.k_view(), plan, memory).ok());
          CHECK_MESSAGE(check_plan(plan, s).ok(), what);
          plan_view<> const view = plan;
          for (std::int64_t l = 0; l < view.list_count(); ++l) {
            CHECK_MESSAGE((view.recalls[l] == -1.f ||
                           (view.recalls[l] >= -1e-3f && view.recalls[l] <= 1.001f)),
                          what);
          }
          // A row that sees a NaN shows it; one call or two say the same.
          testing::result<T> x(s), y(s);
          REQUIRE(a(t.q_view(), t.k_view(), t.v_view(), x.out_view, x.lses, memory).ok());
          REQUIRE(a.run(t.q_view(), t.k_view(), t.v_view(), plan, y.out_view, y.lses, memory).ok());
          for (std::size_t n = 0; n < x.lse.size(); ++n) {
            bool const alike =
                is_nan(x.lse[n]) ? is_nan(y.lse[n]) : !is_nan(y.lse[n]) && x.lse[n] == y.lse[n];
            CHECK_MESSAGE(alike, what << ": " << x.lse[n] << " and " << y.lse[n]);
          }
          for (int h = 0; h < 4; ++h) {
            for (int i = 0; i < 90; ++i) {
              bool nan = false;
              for (int d = 0; d < 12; ++d)
                nan = nan || is_nan(static_cast<double>(t.q_view()(0, h, i, d)));
              bool const sees = !is_empty(x.lses(0, h, i));
              if (nan && sees) CHECK(is_nan(static_cast<double>(x.out_view(0, h, i, 3))));
            }
          }
        }
      };
      for_each_composition<backend::cpu>(check);
      if (kind == 0 || kind == 3) for_each_composition<backend::reference>(check);
    }
  }
}

TEST_CASE("a row that may see NaN far away looks") {
  attention_shape const s{1, 2, 1, 80, 80, 8};
  auto t = testing::random_tensors<float>(s, 5, 0.1f);
  for (int d = 0; d < 8; ++d) t.k[static_cast<std::size_t>(20 * 8 + d)] = __builtin_nanf("");
  auto const check = [&](auto const& attend) {
    workspace<> memory(attend.workspace_bytes(s));
    attention_plan<> const plan = attend.make_plan(s);
    REQUIRE(attend.plan(t.q_view(), t.k_view(), plan, memory).ok());
    for (int i = 60; i < 80; ++i) CHECK(plan.view().rows_at(0, 0)[i] == row_class::rescued);
  };
  auto const with = [](auto const& a) {
    return a.with(near_field{60 - 40, 2})
        .with(selector::far_mass{.epsilon = 0.99f, .estimate = {.block = 8}})
        .with(rescue::coverage{.least = 0.1f})
        .with(budget::fixed{.count = 3});
  };
  check(with(attention{backend::cpu{}}));
  check(with(attention{backend::reference{}}));
}

TEST_CASE("no keys are no values, whatever their address") {
  for (bool const null : {true, false}) {
    attention_shape const s{1, 2, 1, 3, 0, 8};
    std::vector<float> q(48, 1.f), out(48, 7.f), lse(6, 7.f), nothing(1);
    float* const p = null ? nullptr : nothing.data();
    tensor_view<float const> const qs(q.data(), {1, 2, 3, 8}), k(p, {1, 1, 0, 8});
    for_each_composition<backend::cpu>([&](char const* what, auto const& attend) {
      std::vector<unsigned char> memory(attend.workspace_bytes(s), 0xff);
      std::fill(out.begin(), out.end(), 7.f);
      REQUIRE(attend(qs, k, k, tensor_view<float>(out.data(), {1, 2, 3, 8}),
                     lse_view<float>(lse.data(), {1, 2, 3}),
                     workspace_view<>{memory.data(), memory.size()})
                  .ok());
      for (float const x : out) CHECK_MESSAGE(x == 0.f, what);
      for (float const x : lse) CHECK_MESSAGE(is_empty(x), what);
    });
  }
  // No rows either.
  attention_shape const s{1, 2, 1, 0, 5, 8};
  std::vector<float> k(40, 1.f);
  tensor_view<float const> const none(static_cast<float const*>(nullptr), {1, 2, 0, 8}),
      ks(k.data(), {1, 1, 5, 8});
  for_each_composition<backend::cpu>([&](char const*, auto const& attend) {
    workspace<> memory(attend.workspace_bytes(s));
    CHECK(attend(none, ks, ks, tensor_view<float>(nullptr, {1, 2, 0, 8}), memory).ok());
  });
}
