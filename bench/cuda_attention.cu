// Prefill on the GPU: dense, near, far by random plans, and whole calls that decide by themselves
// on planted inputs. Every time is a median of single launches, each waited for; L2 is as the call
// before left it. Useful work counts visible pairs only.
#include "cuda_support.cuh"

#include <omnisparse/presets.hpp>
#include <omnisparse/testing/random.hpp>

#include <cstdio>
#include <exception>
#include <memory>

namespace {

using namespace bench;
using T = bfloat16;

constexpr near_field near{.window = 1024, .sinks = 16};
constexpr int chunk_rows = 32768, rounds = 10;

attention_shape shape_of_case(int dim, int tokens) {
  return dim == 64 ? attention_shape{1, 32, 8, tokens, tokens, 64}
                   : attention_shape{1, 28, 4, tokens, tokens, dim};
}

/// The inputs of a case; those of the case before are kept, as neighbours often share them.
device_tensors<T> const& tensors_of(attention_shape const& shape, float far_rows = 0.4f) {
  static std::unique_ptr<device_tensors<T>> last;
  static float last_rows = 0;
  if (last == nullptr || !(last->shape == shape) || last_rows != far_rows) {
    last.reset();
    last = std::make_unique<device_tensors<T>>(planted{shape, far_rows});
    last_rows = far_rows;
  }
  return *last;
}

auto sparse(float keep) {
  return attention{backend::cuda{}}
      .with(near)
      .with(chunk{chunk_rows})
      .with(selector::far_mass{.epsilon = 0.05f})
      .with(budget::ratio{.share = keep});
}

/// The memory of the attending stages alone, as the backend lays it out.
struct stage_memory {
  explicit stage_memory(attention_shape const& shape) {
    detail::arena count;
    launch::path_memory<T>::take(count, shape, chunk_rows, mask::causal);
    memory = buffer<device>(count.needed());
    detail::arena arena(memory.data(), memory.bytes());
    paths = launch::path_memory<T>::take(arena, shape, chunk_rows, mask::causal);
  }
  /// Calls act(path) with the path that the call takes.
  template <class Act>
  status with_path(device_tensors<T> const& t, Act const& act) const {
    return launch::with_path<T>(backend::cuda_path::automatic, t.call(), paths, act);
  }
  /// The two things `far` does before its kernel.
  status gather(device_tensors<T> const& t, plan_view<device> const& plan) const {
    collective::attend_task<T> task{t.call(), t.lse, near, mask::causal,
                                    collective::attend_keys::list};
    return launch::gather_class(task, plan, row_class::active, paths.hopper, {});
  }
  status pack(device_tensors<T> const& t, plan_view<device> const& plan) const {
    return paths.hopper.for_each_group(
        t.call(), mask::causal, plan.capacity, [&](chunk_range range, packed_kv<T> const& packed) {
          return t.shape.dim == 64
                     ? launch::pack_lists<T, 64>(t.call(), plan, near, range, packed, {})
                     : launch::pack_lists<T, 128>(t.call(), plan, near, range, packed, {});
        });
  }

  buffer<device> memory;
  launch::path_memory<T> paths;
};

void dense(benchmark::State& state) {
  attention_shape const s =
      shape_of_case(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)));
  auto const& t = tensors_of(s);
  auto const attend = attention{backend::cuda{state.range(2) != 0 ? backend::cuda_path::portable
                                                                  : backend::cuda_path::automatic}};
  workspace<device> const memory(attend.workspace_bytes<T>(s));
  double const ms = time_calls(state, [&] { return attend(t.q, t.k, t.v, t.out, t.lse, memory); });
  state.counters["TFLOP/s"] = tera_flops(s, dense_pairs(s), ms);
}

void near_only(benchmark::State& state) {
  attention_shape const s =
      shape_of_case(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)));
  near_field const field{.window = static_cast<int>(state.range(2)), .sinks = 16};
  auto const& t = tensors_of(s);
  stage_memory const m(s);
  double const ms = time_calls(state, [&] {
    return m.with_path(
        t, [&](auto const& path) { return path.near(t.call(), field, mask::causal, t.lse, {}); });
  });
  state.counters["TFLOP/s"] = tera_flops(s, near_pairs(s, field), ms);
}

/// A random plan: `active` of the rows, `keep` of the keys of every list, alone or in runs of 64,
/// `rescued` of the rows.
attention_plan<host> random_plan(attention_shape const& s, float active, float keep, float rescued,
                                 bool clustered) {
  attention_plan<host> plan(s, {chunk_rows});
  auto const view = plan.view();
  testing::generator g(3);
  auto const chance = [&g] { return 0.5f * (g.uniform() + 1.f); };
  for (std::int64_t n = 0; n < view.row_count(); ++n) {
    float const x = chance();
    view.rows[n] = x < rescued            ? row_class::rescued
                   : x < rescued + active ? row_class::active
                                          : row_class::lazy;
  }
  int const run = clustered ? 64 : 1;
  for (std::int64_t l = 0; l < view.list_count(); ++l) {
    auto const c = static_cast<int>(l / s.kv_heads % view.chunks());
    int const end = smaller((c + 1) * chunk_rows, s.kv_tokens);
    for (int first = near.sinks; first < end; first += run) {
      if (chance() >= keep) continue;
      for (int j = first; j < smaller(first + run, end); ++j) {
        view.kept[l * view.capacity + view.kept_counts[l]++] = j;
      }
    }
  }
  return plan;
}

attention_plan<device> on_device(plan_view<host> const& plan, int capacity) {
  // Cut to the longest list, as a call that plans knows it.
  attention_plan<host> cut(plan.shape, {plan.chunk_rows}, capacity);
  auto const to = cut.view();
  std::copy_n(plan.rows, plan.row_count(), to.rows);
  for (std::int64_t l = 0; l < plan.list_count(); ++l) {
    to.kept_counts[l] = plan.kept_counts[l];
    std::copy_n(plan.kept + l * plan.capacity, plan.kept_counts[l], to.kept + l * capacity);
  }
  attention_plan<device> copy(plan.shape, {plan.chunk_rows}, capacity);
  or_throw(copy_plan(copy.view(), to));
  or_throw(detail::device_status(cudaDeviceSynchronize()));
  return copy;
}

int longest(plan_view<host> const& plan) {
  return *std::max_element(plan.kept_counts, plan.kept_counts + plan.list_count());
}

/// The far kernel by a random plan, 40 % active, 10 % kept; gathering rows and packing lists apart.
void far_only(benchmark::State& state) {
  attention_shape const s =
      shape_of_case(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)));
  auto const& t = tensors_of(s);
  auto const made = random_plan(s, 0.4f, 0.1f, 0.f, state.range(2) != 0);
  auto const plan = on_device(made, longest(made));
  stage_memory const m(s);
  or_throw(m.with_path(
      t, [&](auto const& path) { return path.near(t.call(), near, mask::causal, t.lse, {}); }));
  double const all = time_calls(state, [&] {
    return m.with_path(t, [&](auto const& path) {
      return path.far(t.call(), near, mask::causal, plan, t.lse, {});
    });
  });
  auto const before = median_laps(rounds, [&](stopwatch& watch) {
    or_throw(m.gather(t, plan)), watch.mark();
    or_throw(m.pack(t, plan)), watch.mark();
  });
  double const pairs =
      static_cast<double>(summarize(made, near, mask::causal).visible_pairs) - near_pairs(s, near);
  double const kernel = all - before[0] - before[1];
  state.counters["gather"] = before[0];
  state.counters["pack"] = before[1];
  state.counters["kernel"] = kernel;
  state.counters["TFLOP/s"] = tera_flops(s, pairs, kernel);
}

/// 5 % of the rows rescued: what they add to attention by the same plan without them.
void rescue_rows(benchmark::State& state) {
  attention_shape const s =
      shape_of_case(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)));
  auto const& t = tensors_of(s);
  auto const made = random_plan(s, 0.4f, 0.1f, 0.05f, false);
  auto const with = on_device(made, longest(made));
  std::replace(made.view().rows, made.view().rows + made.view().row_count(), row_class::rescued,
               row_class::lazy);
  auto const without = on_device(made, longest(made));
  auto const attend = attention{backend::cuda{}}.with(near).with(chunk{chunk_rows});
  workspace<device> const memory(attend.workspace_bytes<T>(s));
  auto const run = [&](plan_view<device> const& plan) {
    return attend.run(t.q, t.k, t.v, plan, t.out, t.lse, memory);
  };
  double const all = time_calls(state, [&] { return run(with); });
  auto const laps =
      median_laps(rounds, [&](stopwatch& watch) { or_throw(run(without)), watch.mark(); });
  state.counters["without"] = laps[0];
  state.counters["extra"] = all - laps[0];
}

/// Times whole calls, then counts what the plan comes to and what the rows see by it. The plan.
template <class Attention>
attention_plan<host> time_whole(benchmark::State& state, Attention const& attend,
                                device_tensors<T> const& t) {
  attention_shape const& s = t.shape;
  double ms = 0;
  attention_plan<host> decided;
  {
    workspace<device> const memory(attend.template workspace_bytes<T>(s));
    ms = time_calls(state, [&] { return attend(t.q, t.k, t.v, t.out, t.lse, memory); });
    auto const plan = attend.make_plan(s);
    or_throw(attend.plan(t.q, t.k, plan, memory));
    decided = on_host(plan.view());
  }
  plan_summary const sum = summarize(decided, attend.policies().near, mask::causal);
  state.counters["active"] = sum.active;
  state.counters["rescued"] = sum.rescued;
  state.counters["density"] = sum.density;
  state.counters["TFLOP/s"] = tera_flops(s, static_cast<double>(sum.visible_pairs), ms);

  // Recall: the share of a row's mass that it sees, by the log-sum-exp of dense attention.
  auto const seen = on_host<T>(t.lse);
  {
    auto const full = attention{backend::cuda{}};
    workspace<device> const memory(full.workspace_bytes<T>(s));
    or_throw(full(t.q, t.k, t.v, t.out, t.lse, memory));
  }
  auto const all = on_host<T>(t.lse);
  double recall = 0;
  for (std::size_t n = 0; n < all.size(); ++n) {
    recall += std::exp(static_cast<double>(seen[n]) - static_cast<double>(all[n]));
  }
  state.counters["recall"] = recall / static_cast<double>(all.size());
  return decided;
}

/// A whole call of a preset as it comes; where it always plans; and dense attention. The table in
/// tuning/crossover.hpp is read off `plans` over `dense`.
template <class Preset>
void time_preset(benchmark::State& state, attention_shape const& s, Preset const& preset,
                 backend::cuda_path path) {
  auto const& t = tensors_of(s, static_cast<float>(state.range(2)) / 100);
  auto const plans = preset.with(crossover::never);
  auto const dense = attention{backend::cuda{path}};
  double as_it_comes = 0;
  {
    workspace<device> const memory(
        larger(preset.template workspace_bytes<T>(s), dense.template workspace_bytes<T>(s)));
    auto const lap = [&](auto const& attend, stopwatch& watch) {
      or_throw(attend(t.q, t.k, t.v, t.out, t.lse, memory)), watch.mark();
    };
    // The first lap waits for the host, the others are launched meanwhile.
    auto const laps = median_laps(rounds, [&](stopwatch& watch) {
      lap(dense, watch), lap(dense, watch), lap(preset, watch), lap(plans, watch);
    });
    state.counters["dense"] = laps[1];
    state.counters["plans"] = laps[3];
    as_it_comes = laps[2];
  }
  time_whole(state, plans, t);
  state.counters["ms"] = as_it_comes;
  state.counters["runs_dense"] = preset.template runs_dense<T>(s) ? 1 : 0;
}

template <bool Portable>
void local_first(benchmark::State& state) {
  attention_shape const s =
      shape_of_case(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)));
  auto const path = Portable ? backend::cuda_path::portable : backend::cuda_path::automatic;
  time_preset(state, s, presets::local_first(backend::cuda{path}, s.kv_tokens), path);
}
void published(benchmark::State& state) {
  attention_shape const s =
      shape_of_case(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)));
  time_preset(state, s, presets::published(backend::cuda{}), backend::cuda_path::automatic);
}

/// A whole call by a budget that is told, then its stages one by one.
void prefill(benchmark::State& state) {
  attention_shape const s =
      shape_of_case(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)));
  auto const& t = tensors_of(s, static_cast<float>(state.range(2)) / 100);
  auto const attend = sparse(static_cast<float>(state.range(3)) / 100);
  auto const decided = time_whole(state, attend, t);

  // The stages in the order of the engine, then gathering and packing again, apart from `far`.
  auto const plan = on_device(decided, longest(decided));
  stage_memory const m(s);
  auto const& p = attend.policies();
  using policies = std::remove_cvref_t<decltype(p)>;
  chunk_range const range{0, plan.view().chunks()};
  auto const take = [&](detail::arena& arena) {
    struct {
      scores_view scores;
      launch::observe_memory<policies> observe;
      launch::select_memory select;
    } x{scores_view::take(arena, s, range),
        launch::observe_memory<policies>::take(arena, s, p, range),
        launch::select_memory::take(arena, s, range)};
    return x;
  };
  detail::arena count;
  take(count);
  buffer<device> const planning(count.needed());
  detail::arena arena(planning.data(), planning.bytes());
  auto const x = take(arena);
  auto const call = t.call();
  auto const laps = median_laps(rounds, [&](stopwatch& watch) {
    auto const step = [&](status const& ran) { or_throw(ran), watch.mark(); };
    step(m.with_path(
        t, [&](auto const& path) { return path.near(call, near, mask::causal, t.lse, {}); }));
    step(launch::classify_far(call, p, t.lse, plan.view(), x.observe, {}));
    step(m.with_path(t, [&](auto const& path) {
      return path.probe(call, p, plan.view(), range, x.scores, x.observe, {});
    }));
    step(launch::select(call, p, plan.view(), range, x.scores, x.select, {}));
    step(m.with_path(
        t, [&](auto const& path) { return path.far(call, near, mask::causal, plan, t.lse, {}); }));
    step(m.gather(t, plan));
    step(m.pack(t, plan));
  });
  char const* const names[] = {"near", "classify", "probe", "select", "far", "gather", "pack"};
  for (std::size_t n = 0; n < laps.size(); ++n) state.counters[names[n]] = laps[n];
  state.counters["kernels"] = laps[0] + laps[4] - laps[5] - laps[6];
}

/// The best of 128K scores for each of 16 lists: in a graph of 20 launches, scores in L2.
template <class Budget>
void top(benchmark::State& state, Budget budget) {
  int const lists = static_cast<int>(state.range(0)), keys = static_cast<int>(state.range(1));
  attention_shape const s{1, lists, lists, 64, keys, 64};
  auto const attend = attention{backend::cuda{}}.with(budget);
  auto const plan = attend.make_plan(s);
  chunk_range const range{0, 1};
  auto const take = [&](detail::arena& arena) {
    return std::pair{scores_view::take(arena, s, range),
                     launch::select_memory::take(arena, s, range)};
  };
  detail::arena count;
  take(count);
  buffer<device> const memory(count.needed());
  detail::arena arena(memory.data(), memory.bytes());
  auto const [scores, selecting] = take(arena);
  std::vector<float> mass(static_cast<std::size_t>(lists) * static_cast<std::size_t>(scores.keys));
  testing::generator g(5);
  for (float& x : mass) x = std::exp(4.f * g.normal()) * 1e-6f;
  std::vector<int> const pairs(static_cast<std::size_t>(lists), 64);
  auto const fill = [&mass](float* to) {
    or_throw(detail::device_status(
        cudaMemcpy(to, mass.data(), mass.size() * sizeof(float), cudaMemcpyDefault)));
  };
  fill(scores.mass);
  fill(scores.score);
  or_throw(detail::device_status(
      cudaMemcpy(scores.pairs, pairs.data(), pairs.size() * sizeof(int), cudaMemcpyDefault)));
  attention_call<T, device> call;
  call.shape = s;
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  auto const check = [](cudaError_t error) { or_throw(detail::device_status(error)); };
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int n = 0; n < 20; ++n) {
    or_throw(
        launch::select(call, attend.policies(), plan.view(), range, scores, selecting, stream));
  }
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&replay, graph, 0));
  double const ms =
      time_calls(state, [&] { return detail::device_status(cudaGraphLaunch(replay, {})); });
  state.counters["us"] = 1e3 * ms / 20;
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

void top_fixed(benchmark::State& state) { top(state, budget::fixed{.count = 13107}); }
void top_reach(benchmark::State& state) { top(state, budget::guaranteed{.recall = 0.95f}); }

/// Dense attention and a whole sparse call at other head dimensions, which run padded.
void head_dimension(benchmark::State& state) {
  int const dim = static_cast<int>(state.range(0)), tokens = static_cast<int>(state.range(1));
  attention_shape const s{1, 28, 4, tokens, tokens, dim};
  auto const& t = tensors_of(s, 0.15f);
  auto const full = attention{backend::cuda{}};
  auto const some = sparse(0.05f);
  workspace<device> const memory(larger(full.workspace_bytes<T>(s), some.workspace_bytes<T>(s)));
  auto const laps = median_laps(rounds, [&](stopwatch& watch) {
    or_throw(full(t.q, t.k, t.v, t.out, t.lse, memory)), watch.mark();
    or_throw(some(t.q, t.k, t.v, t.out, t.lse, memory)), watch.mark();
  });
  for (auto _ : state) state.SetIterationTime(laps[0] / 1e3);
  state.counters["ms"] = laps[0];
  state.counters["sparse"] = laps[1];
  state.counters["TFLOP/s"] = tera_flops(s, dense_pairs(s), laps[0]);
}

/// A refusal ends a benchmark with its sentence, not the program.
template <auto Benchmark>
void guarded(benchmark::State& state) {
  try {
    Benchmark(state);
  } catch (std::exception const& e) {
    state.SkipWithError(e.what());
  }
}

std::vector<std::int64_t> powers(int first, int last) {
  std::vector<std::int64_t> all;
  for (int n = first; n <= last; n *= 2) all.push_back(n);
  return all;
}

void timed(benchmark::internal::Benchmark* b) {
  b->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(rounds);
}

}  // namespace

BENCHMARK(guarded<dense>)
    ->Name("dense")
    ->ArgsProduct({{128, 64}, powers(1024, 131072), {0}})
    ->ArgsProduct({{128, 64}, {8192, 32768}, {1}})
    ->ArgNames({"D", "N", "portable"})
    ->Apply(timed);
BENCHMARK(guarded<near_only>)
    ->Name("near_only")
    ->ArgsProduct({{128, 64}, {131072}, {256, 1024, 4096}})
    ->ArgNames({"D", "N", "window"})
    ->Apply(timed);
BENCHMARK(guarded<far_only>)
    ->Name("far_only")
    ->ArgsProduct({{128, 64}, {131072}, {0, 1}})
    ->ArgNames({"D", "N", "clustered"})
    ->Apply(timed);
BENCHMARK(guarded<rescue_rows>)
    ->Name("rescue_rows")
    ->ArgsProduct({{128, 64}, {131072}})
    ->ArgNames({"D", "N"})
    ->Apply(timed);
BENCHMARK(guarded<prefill>)
    ->Name("prefill")
    ->ArgsProduct({{128}, powers(1024, 131072), {40}, {10}})
    ->ArgsProduct({{128}, powers(1024, 131072), {15}, {5}})
    ->ArgsProduct({{64}, {131072}, {40}, {10}})
    ->ArgsProduct({{64}, {131072}, {15}, {5}})
    ->ArgNames({"D", "N", "active", "keep"})
    ->Apply(timed);
BENCHMARK(guarded<local_first<false>>)
    ->Name("local_first")
    ->ArgsProduct({{128, 64}, powers(256, 131072), {40}})
    ->ArgNames({"D", "N", "active"})
    ->Apply(timed);
BENCHMARK(guarded<local_first<true>>)
    ->Name("local_first_portable")
    ->ArgsProduct({{128}, powers(1024, 16384), {40}})
    ->ArgNames({"D", "N", "active"})
    ->Apply(timed);
BENCHMARK(guarded<published>)
    ->Name("published")
    ->ArgsProduct({{128}, powers(256, 131072), {40}})
    ->ArgNames({"D", "N", "active"})
    ->Apply(timed);
BENCHMARK(guarded<head_dimension>)
    ->Name("head_dimension")
    ->ArgsProduct({{16, 32, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256}, {16384}})
    ->ArgNames({"D", "N"})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1);
BENCHMARK(guarded<top_fixed>)
    ->Name("top_fixed")
    ->Args({16, 131072})
    ->ArgNames({"lists", "keys"})
    ->Apply(timed);
BENCHMARK(guarded<top_reach>)
    ->Name("top_reach")
    ->Args({16, 131072})
    ->ArgNames({"lists", "keys"})
    ->Apply(timed);

int main(int argc, char** argv) {
  cudaDeviceProp device = {};
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
    std::fputs("there is no usable GPU\n", stderr);
    return 1;
  }
  benchmark::AddCustomContext("gpu", device.name);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
