// Dense and sparse prefill on the CPU. `useful` counts visible pairs only; `ratio` compares a
// sparse case with its density times the dense time of the same run, plus 2 % of it.
#include "planted.hpp"

#include <omnisparse/presets.hpp>
#include <omnisparse/testing/plans.hpp>
#include <omnisparse/testing/random.hpp>

#include <benchmark/benchmark.h>

#include <chrono>
#include <map>

namespace {

using namespace omnisparse;

attention_shape shape_of_case(benchmark::State const& state) {
  int const dim = static_cast<int>(state.range(0)), tokens = static_cast<int>(state.range(1));
  return dim == 64 ? attention_shape{1, 9, 3, tokens, tokens, 64}
                   : attention_shape{1, 28, 4, tokens, tokens, dim};
}

double flops(attention_shape const& s) {
  return 2.0 * s.dim * s.q_heads * static_cast<double>(s.q_tokens) *
         static_cast<double>(s.kv_tokens);
}

std::vector<float> make_out(attention_shape const& s) {
  return std::vector<float>(static_cast<std::size_t>(s.q_heads) *
                            static_cast<std::size_t>(s.q_tokens) * static_cast<std::size_t>(s.dim));
}

/// Seconds of the fastest of three dense calls; measured once a shape.
double dense_seconds(testing::tensors<float> const& t) {
  static std::map<std::pair<int, int>, double> known;
  auto& best = known[{t.shape.dim, t.shape.q_tokens}];
  if (best > 0) return best;
  auto const attend = attention{backend::cpu{}};
  workspace<> memory(attend.workspace_bytes(t.shape));
  std::vector<float> out = make_out(t.shape);
  best = 1e9;
  for (int n = 0; n < 3; ++n) {
    auto const start = std::chrono::steady_clock::now();
    or_throw(attend(t.q_view(), t.k_view(), t.v_view(),
                    tensor_view(out.data(), {1, t.shape.q_heads, t.shape.q_tokens, t.shape.dim}),
                    memory));
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

void dense(benchmark::State& state) {
  attention_shape const s = shape_of_case(state);
  auto const t = testing::random_tensors<float>(s, 1);
  std::vector<float> out = make_out(s);
  auto const attend = attention{backend::cpu{}};
  workspace<> memory(attend.workspace_bytes(s));
  for (auto _ : state) {
    or_throw(attend(t.q_view(), t.k_view(), t.v_view(),
                    tensor_view(out.data(), {1, s.q_heads, s.q_tokens, s.dim}), memory));
  }
  state.counters["GFLOP/s"] =
      benchmark::Counter(flops(s) / 1e9, benchmark::Counter::kIsIterationInvariantRate);
}

/// A random plan: 60 % of the rows active, a window of range(3), lists of range(4) rows, as long as
/// a density of about range(2) percent asks for.
void sparse_attend(benchmark::State& state) {
  attention_shape const s = shape_of_case(state);
  auto const t = testing::random_tensors<float>(s, 1);
  double const wanted = static_cast<double>(state.range(2)) / 100;
  auto const attend = attention{backend::cpu{}}.with(
      near_field{.window = static_cast<int>(state.range(3)), .sinks = 4});
  attention_plan<> const plan(s, chunk{static_cast<int>(state.range(4))});
  auto const view = plan.view();
  testing::generator g(3);
  double const active = 0.6;
  double const near_share = 2.0 * static_cast<double>(state.range(3)) / s.kv_tokens;
  double const keep = std::max(0.0, (wanted - near_share) / active);
  for (std::int64_t n = 0; n < view.row_count(); ++n) {
    view.rows[n] = g.uniform() * 0.5f + 0.5f < static_cast<float>(active) ? row_class::active
                                                                          : row_class::lazy;
  }
  for (std::int64_t l = 0; l < view.list_count(); ++l) {
    for (int j = 0; j < s.kv_tokens; ++j) {
      if (g.uniform() * 0.5f + 0.5f < static_cast<float>(keep))
        view.kept[l * view.capacity + view.kept_counts[l]++] = j;
    }
  }
  double const base = dense_seconds(t);
  double const density = summarize(plan, attend.policies().near, mask::causal).density;
  std::vector<float> out = make_out(s);
  workspace<> memory(attend.workspace_bytes(s));
  double best = 1e9;
  for (auto _ : state) {
    auto const start = std::chrono::steady_clock::now();
    or_throw(attend.run(t.q_view(), t.k_view(), t.v_view(), plan,
                        tensor_view(out.data(), {1, s.q_heads, s.q_tokens, s.dim}), memory));
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  state.counters["density"] = density;
  state.counters["of_dense"] = best / base;
  state.counters["of_target"] = best / (base * (density * 1.25 + 0.02));
}

/// What `local_first` costs before it attends: one call minus the attention by its own plan.
void planning(benchmark::State& state) {
  attention_shape const s = shape_of_case(state);
  auto const t = testing::random_tensors<float>(s, 1, 2.5f);
  double const base = dense_seconds(t);
  auto const attend = presets::local_first(backend::cpu{}, s.kv_tokens);
  workspace<> memory(attend.workspace_bytes(s));
  auto const plan = attend.make_plan(s);
  std::vector<float> out = make_out(s);
  tensor_view const outs(out.data(), {1, s.q_heads, s.q_tokens, s.dim});
  double plan_best = 1e9, run_best = 1e9, call_best = 1e9;
  auto const timed = [](double& best, auto const& call) {
    auto const start = std::chrono::steady_clock::now();
    or_throw(call());
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  };
  for (auto _ : state) {
    timed(plan_best, [&] { return attend.plan(t.q_view(), t.k_view(), plan, memory); });
    timed(run_best,
          [&] { return attend.run(t.q_view(), t.k_view(), t.v_view(), plan, outs, memory); });
    timed(call_best, [&] { return attend(t.q_view(), t.k_view(), t.v_view(), outs, memory); });
  }
  state.counters["density"] = summarize(plan, attend.policies().near, mask::causal).density;
  state.counters["plan_of_dense"] = plan_best / base;
  state.counters["in_call_of_dense"] = (call_best - run_best) / base;
  state.counters["call_of_dense"] = call_best / base;
}

/// q, k, v of a planted call.
testing::tensors<float> planted_tensors(attention_shape const& s, float far_rows) {
  bench::planted const from{s, far_rows};
  auto t = testing::random_tensors<float>(s, 1);
  auto const fill = [&](std::vector<float>& to, int heads, auto const& element) {
    std::size_t at = 0;
    for (int h = 0; h < heads; ++h) {
      for (int i = 0; i < s.kv_tokens; ++i) {
        for (int d = 0; d < s.dim; ++d) to[at++] = element(h, i, d);
      }
    }
  };
  fill(t.q, s.q_heads, [&](int h, int i, int d) { return from.q(0, h, i, d); });
  fill(t.k, s.kv_heads, [&](int h, int i, int d) { return from.k(0, h, i, d); });
  return t;
}

/// A preset beside dense attention, in turn: `of_dense` where it always plans, and as it comes.
/// The table in backend/cpu/crossover.hpp is read off the first.
template <class Preset>
void time_preset(benchmark::State& state, Preset const& preset) {
  attention_shape const s = shape_of_case(state);
  auto const t = planted_tensors(s, static_cast<float>(state.range(2)) / 100);
  auto const dense = attention{backend::cpu{}};
  auto const plans = preset.with(crossover::never);
  workspace<> memory(preset.workspace_bytes(s));
  std::vector<float> out = make_out(s);
  tensor_view const outs(out.data(), {1, s.q_heads, s.q_tokens, s.dim});
  double dense_best = 1e9, plans_best = 1e9, best = 1e9;
  auto const timed = [&](double& fastest, auto const& attend) {
    auto const start = std::chrono::steady_clock::now();
    or_throw(attend(t.q_view(), t.k_view(), t.v_view(), outs, memory));
    fastest = std::min(
        fastest, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  };
  for (auto _ : state) timed(dense_best, dense), timed(plans_best, plans), timed(best, preset);
  state.counters["plans_of_dense"] = plans_best / dense_best;
  state.counters["of_dense"] = best / dense_best;
  state.counters["runs_dense"] = preset.runs_dense(s) ? 1 : 0;
}

void local_first(benchmark::State& state) {
  time_preset(state, presets::local_first(backend::cpu{}, static_cast<int>(state.range(1))));
}
void published(benchmark::State& state) { time_preset(state, presets::published(backend::cpu{})); }

void lengths(benchmark::internal::Benchmark* b) {
  for (int dim : {64, 128}) {
    for (int tokens = 256; tokens <= 16384; tokens *= 2) b->Args({dim, tokens, 40});
  }
  b->ArgNames({"D", "N", "active"})->Unit(benchmark::kMillisecond)->UseRealTime()->Iterations(5);
}

void shapes(benchmark::internal::Benchmark* b) {
  for (int tokens : {2048, 4096, 8192, 16384}) b->Args({64, tokens});
  for (int tokens : {2048, 4096, 8192, 16384}) b->Args({128, tokens});
  b->ArgNames({"D", "N"})->Unit(benchmark::kMillisecond)->UseRealTime();
}

}  // namespace

BENCHMARK(dense)->Apply(shapes);
BENCHMARK(dense)  // heads that are no whole number of vectors, or of panels
    ->Name("head_dimension")
    ->ArgsProduct({{16, 20, 33, 40, 72, 80, 96, 112, 128, 160}, {2048}})
    ->ArgNames({"D", "N"})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK(sparse_attend)
    ->ArgsProduct({{64}, {16384}, {5, 10, 20, 30, 50}, {256}, {2048}})
    ->ArgsProduct(
        {{64}, {4096, 8192}, {5, 10, 20}, {64}, {512, 2048}})  // the hard end: small tiles
    ->ArgsProduct({{128}, {8192}, {5, 10, 20, 50}, {128}, {2048}})
    ->ArgNames({"D", "N", "percent", "window", "chunk"})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK(planning)->Apply(shapes);
BENCHMARK(local_first)->Apply(lengths);
BENCHMARK(published)->Apply(lengths);

BENCHMARK_MAIN();
