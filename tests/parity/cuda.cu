// The functor on the GPU against the functor on the reference: plans, outputs, graphs, refusals.
#include "support/compare_plans.hpp"
#include "support/stages.cuh"

#include <omnisparse/presets.hpp>
#include <omnisparse/testing/archetypes.hpp>

#include <cstring>
#include <thread>

using namespace testing_support;

namespace {

// The paths that a test runs: what the GPU would choose, and the portable one by force.
constexpr backend::cuda paths[] = {{}, {.path = backend::cuda_path::portable}};

constexpr char const* name_of(backend::cuda b) {
  return b.path == backend::cuda_path::portable ? "portable" : "automatic";
}

// What a call left on its stream.
std::pair<std::vector<bfloat16>, std::vector<float>> outputs_of(device_call<bfloat16> const& call,
                                                                cudaStream_t stream) {
  check_cuda(cudaStreamSynchronize(stream));
  return {call.out.download(), call.lses()};
}

constexpr auto same_bits = [](auto const& a, auto const& b) {
  return std::memcmp(a.first.data(), b.first.data(), a.first.size() * sizeof(bfloat16)) == 0 &&
         a.second == b.second;
};

template <class T>
void check_run(attention_shape const& s, near_field near, mask limit, int chunk_rows,
               testing::plan_kind kind, layout order, std::uint64_t seed, bool ragged,
               softmax_scale scale = {}) {
  auto const t = testing::random_tensors<T>(s, seed, 1.5f);
  std::vector<int> q_lengths, kv_lengths;
  if (ragged) {
    for (int b = 0; b < s.batch; ++b) {
      q_lengths.push_back(larger(0, s.q_tokens - 7 * (b + 1)));
      kv_lengths.push_back(larger(0, s.kv_tokens - 5 * (b + 1)));
    }
  }
  device_inputs const in(s, q_lengths, kv_lengths);
  attention_plan<host> const plan(s, {chunk_rows});
  testing::fill_plan(plan, kind, seed);
  make_missing_rows_lazy(plan, in.on_host);
  auto const slow = attention{backend::reference{}}.with(near).with(limit).with(scale);
  testing::result<T> oracle(s);
  REQUIRE(slow.run(t.q_view(), t.k_view(), t.v_view(), plan, oracle.out_view, oracle.lses,
                   workspace<>{}, in.on_host)
              .ok());
  auto const twin = to_device(plan);
  for (backend::cuda const b : paths) {
    auto const fast = attention{b}.with(near).with(limit).with(scale).with(chunk{chunk_rows});
    device_call<T> call(t, order);
    poisoned const memory(fast.template workspace_bytes<T>(s));
    status const ran = fast.run(call.q.view, call.k.view, call.v.view, twin, call.out.view,
                                call.lse, {memory.data(), memory.bytes()}, in.on_device);
    REQUIRE_MESSAGE(ran.ok(), std::string(ran.message));
    check_cuda(cudaDeviceSynchronize());
    check_outputs(call, oracle, describe(s, near, limit, name_of(b)));
    CHECK(memory.guard_is_whole());
  }
}

template <class T, class Compose>
void check_plan(attention_shape const& s, Compose const& compose, std::uint64_t seed, bool text) {
  auto const t = testing::random_tensors<T>(s, seed, 1.5f);
  std::vector<segment> kinds;
  for (int n = 0; text && n < s.batch * s.kv_tokens; ++n) {
    kinds.push_back(n % 11 == 3 ? segment::text : segment::visual);
  }
  device_inputs const in(s, {}, {}, kinds);
  auto const slow = compose(attention{backend::reference{}});
  auto const wanted = slow.make_plan(s);
  REQUIRE(slow.plan(t.q_view(), t.k_view(), wanted, workspace<>{}, in.on_host).ok());
  for (backend::cuda const b : paths) {
    auto const fast = compose(attention{b});
    device_call<T> call(t);
    poisoned memory(fast.template workspace_bytes<T>(s));
    workspace_view<device> const ws{memory.data(), memory.bytes()};
    auto const made = fast.make_plan(s);
    status const planned = fast.plan(call.q.view, call.k.view, made, ws, in.on_device);
    REQUIRE_MESSAGE(planned.ok(), std::string(planned.message));
    attention_plan<host> const copy(s, {made.view().chunk_rows});
    REQUIRE(copy_plan(copy.view(), made.view()).ok());
    check_cuda(cudaDeviceSynchronize());
    CHECK(memory.guard_is_whole());
    auto const& policies = slow.policies();
    std::string const what = describe(s, policies.near, policies.limit, name_of(b));
    REQUIRE_MESSAGE(omnisparse::check_plan(copy, s).ok(), what);
    check_same_plan(copy, wanted, {.rows = 300, .entries = 200, .recall = 1e-3f}, what);

    // Plan then run equals one call, bit by bit, and the CPU runs the GPU's plan.
    device_call<T> one(t);
    REQUIRE(fast.run(call.q.view, call.k.view, call.v.view, made, call.out.view, call.lse, ws,
                     in.on_device)
                .ok());
    check_cuda(cudaDeviceSynchronize());
    memory.refill();
    REQUIRE(fast(one.q.view, one.k.view, one.v.view, one.out.view, one.lse, ws, in.on_device).ok());
    check_cuda(cudaDeviceSynchronize());
    auto const u = call.out.download(), w = one.out.download();
    CHECK_MESSAGE(std::memcmp(u.data(), w.data(), u.size() * sizeof(T)) == 0,
                  what << ": plan then run differs from one call");
    CHECK(call.lses() == one.lses());
    testing::result<T> oracle(s);
    REQUIRE(slow.run(t.q_view(), t.k_view(), t.v_view(), copy, oracle.out_view, oracle.lses,
                     workspace<>{}, in.on_host)
                .ok());
    check_outputs(call, oracle, what + " by its own plan");
  }
}

}  // namespace

TEST_CASE_TEMPLATE("attention by a given plan is the reference's", T, bfloat16, omnisparse::half,
                   float) {
  std::uint64_t seed = 0;
  for (attention_shape const s :
       {attention_shape{2, 4, 2, 150, 200, 64}, attention_shape{1, 7, 1, 300, 300, 128},
        attention_shape{2, 3, 3, 129, 257, 128}, attention_shape{1, 2, 1, 65, 130, 256}}) {
    for (mask const limit : {mask::causal, mask::full}) {
      for (testing::plan_kind const kind : testing::plan_kinds) {
        ++seed;
        near_field const near{.window = seed % 3 == 0 ? 0 : static_cast<int>(seed * 37 % 140),
                              .sinks = static_cast<int>(seed % 5)};
        auto const order = static_cast<layout>(seed % 3);
        check_run<T>(s, near, limit, seed % 2 == 0 ? 64 : 0, kind, order, seed, seed % 4 == 1);
      }
    }
  }
}

TEST_CASE_TEMPLATE("a plan of any chunk runs in the workspace of a functor of another", T, bfloat16,
                   float) {
  for (attention_shape const s :
       {attention_shape{2, 4, 2, 300, 400, 64}, attention_shape{1, 7, 1, 260, 260, 128}}) {
    for (mask const limit : {mask::causal, mask::full}) {
      auto const compose = [=](auto a) {
        return a.with(near_field{.window = 30, .sinks = 2})
            .with(limit)
            .with(selector::far_mass{.epsilon = 0.3f})
            .with(budget::per_head{.recall = 0.7f})
            .with(rescue::coverage{.least = 0.6f});
      };
      auto const t = testing::random_tensors<T>(s, 21, 1.5f);
      auto const slow = compose(attention{backend::reference{}}).with(chunk{64});
      auto const plan = slow.make_plan(s);
      REQUIRE(slow.plan(t.q_view(), t.k_view(), plan, workspace<>{}).ok());
      testing::result<T> oracle(s);
      REQUIRE(slow.run(t.q_view(), t.k_view(), t.v_view(), plan, oracle.out_view, oracle.lses,
                       workspace<>{})
                  .ok());
      auto const twin = to_device(plan);
      auto const check = [&](auto const& fast, std::string const& what) {
        device_call<T> call(t);
        poisoned const memory(fast.template workspace_bytes<T>(s));
        status const ran = fast.run(call.q.view, call.k.view, call.v.view, twin, call.out.view,
                                    call.lse, {memory.data(), memory.bytes()});
        REQUIRE_MESSAGE(ran.ok(), std::string(ran.message));
        check_cuda(cudaDeviceSynchronize());
        check_outputs(call, oracle, describe(s, fast.policies().near, limit, what));
        CHECK(memory.guard_is_whole());
      };
      for (backend::cuda const b : paths) {
        for (int const rows : {0, 16, 64, 200}) {
          std::string const what = name_of(b) + (" chunk " + std::to_string(rows));
          check(compose(attention{b}).with(chunk{rows}), what);
          // Dense attention has the smallest workspace.
          auto const dense = attention{b}.with(near_field{.window = 30, .sinks = 2}).with(limit);
          check(dense.with(chunk{rows}), what + " dense");
        }
      }
    }
  }
}

TEST_CASE("every composition plans as the reference does") {
  std::uint64_t seed = 100;
  using T = bfloat16;
  for (attention_shape const s :
       {attention_shape{1, 4, 2, 150, 300, 64}, attention_shape{2, 3, 1, 260, 260, 128}}) {
    for (mask const limit : {mask::causal, mask::full}) {
      for (int const window : {0, 40}) {
        auto const base = [=](auto a) {
          return a.with(near_field{window, 3}).with(limit).with(chunk{100});
        };
        bool const text = ++seed % 2 == 0;
        check_plan<T>(
            s,
            [&](auto a) {
              return base(a)
                  .with(selector::far_mass{.epsilon = 0.5f,
                                           .estimate = {.block = 16, .per_level = 2}})
                  .with(budget::flattest_head{.recall = 0.8f})
                  .with(rescue::coverage{.least = 0.7f, .estimate = {.block = 32}});
            },
            seed, text);
        check_plan<T>(
            s,
            [&](auto a) {
              return base(a)
                  .with(selector::sink_contrast{.first = 5, .range = pool_range::past})
                  .with(budget::per_head{.recall = 0.7f})
                  .with(scorer::column_mass{.last = 5, .strided = 9, .normalise = true});
            },
            seed, text);
        check_plan<T>(
            s,
            [&](auto a) {
              return base(a)
                  .with(testing::odd_positions{})
                  .with(testing::peak_share{})
                  .with(testing::every_tenth{})
                  .with(budget::ratio{.share = 0.3f});
            },
            seed, text);
      }
    }
  }
}

TEST_CASE_TEMPLATE("local_first plans alike in the other dtypes", T, omnisparse::half, float) {
  for (attention_shape const s :
       {attention_shape{1, 4, 2, 400, 400, 64}, attention_shape{1, 2, 1, 200, 333, 256}}) {
    check_plan<T>(
        s,
        [](auto a) {
          return a.with(near_field{.window = 60, .sinks = 4})
              .with(chunk{128})
              .with(selector::far_mass{.epsilon = 0.3f})
              .with(budget::per_head{.recall = 0.8f})
              .with(rescue::coverage{.least = 0.6f});
        },
        7, false);
  }
}

TEST_CASE_TEMPLATE("heads of any dimension attend and plan as the reference does, under any scale",
                   T, bfloat16, omnisparse::half, float) {
  std::uint64_t seed = 300;
  for (int const dim : {16, 24, 40, 64, 72, 80, 96, 112, 120, 128, 136, 160, 192, 256}) {
    attention_shape const s{1, 4, 2, 150, 200, dim};
    for (int n = 0; n < 3; ++n) {
      ++seed;
      double const scales[] = {0, 0.04, 0.3};
      softmax_scale const scale{scales[seed % 3]};
      mask const limit = seed % 4 == 0 ? mask::full : mask::causal;
      check_run<T>(s, {static_cast<int>(seed * 37 % 90), 3}, limit, 64, testing::plan_kind::random,
                   static_cast<layout>(n), seed, seed % 2 == 0, scale);
      if (n > 0) continue;
      check_plan<T>(
          s,
          [=](auto a) {
            return a.with(near_field{.window = 40, .sinks = 4})
                .with(limit)
                .with(chunk{64})
                .with(scale)
                .with(selector::far_mass{.epsilon = 0.3f})
                .with(budget::per_head{.recall = 0.8f})
                .with(rescue::coverage{.least = 0.6f});
          },
          seed, false);
    }
  }
}

TEST_CASE("a captured graph replays with other inputs, and the same call gives the same bits") {
  attention_shape const s{1, 6, 2, 500, 700, 128};
  auto const attend = presets::local_first(
      backend::cuda{}, 700, {.window = 64, .chunk_rows = 200, .below = crossover::never});
  auto const t = testing::random_tensors<bfloat16>(s, 5, 1.5f);
  auto const other = testing::random_tensors<bfloat16>(s, 6, 1.5f);
  device_call<bfloat16> call(t);
  poisoned memory(attend.workspace_bytes<bfloat16>(s));
  workspace_view<device> const ws{memory.data(), memory.bytes()};
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  auto const run = [&] {
    REQUIRE(attend(call.q.view, call.k.view, call.v.view, call.out.view, call.lse, ws, {}, stream)
                .ok());
  };
  run();
  auto const first = outputs_of(call, stream);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  run();
  check_cuda(cudaStreamEndCapture(stream, &graph));
  check_cuda(cudaGraphInstantiate(&replay, graph, 0));
  for (int n = 0; n < 3; ++n) {
    call.upload(n == 1 ? other : t);
    memory.refill();
    check_cuda(cudaDeviceSynchronize());
    check_cuda(cudaGraphLaunch(replay, stream));
    auto const replayed = outputs_of(call, stream);
    call.clear();
    run();
    CHECK(same_bits(replayed, outputs_of(call, stream)));
    CHECK(same_bits(replayed, first) == (n != 1));
  }
  int differing = 0;
  for (int n = 0; n < 1000; ++n) check_cuda(cudaGraphLaunch(replay, stream));
  for (int n = 0; n < 50; ++n) {
    call.clear();
    check_cuda(cudaDeviceSynchronize());
    check_cuda(cudaGraphLaunch(replay, stream));
    differing += !same_bits(outputs_of(call, stream), first);
  }
  CHECK(differing == 0);
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_CASE("calls on two streams at once give the bits that each gives alone") {
  attention_shape const s{1, 6, 2, 500, 700, 128};
  for (backend::cuda const b : paths) {
    auto const attend =
        presets::local_first(b, 700, {.window = 64, .chunk_rows = 200, .below = crossover::never});
    struct lane {
      device_call<bfloat16> call;
      poisoned memory;
      cudaStream_t stream = nullptr;
    };
    auto const make = [&](std::uint64_t seed) {
      return lane{device_call<bfloat16>(testing::random_tensors<bfloat16>(s, seed, 1.5f)),
                  poisoned(attend.workspace_bytes<bfloat16>(s))};
    };
    lane lanes[] = {make(5), make(6)};
    for (lane& l : lanes) {
      check_cuda(cudaStreamCreateWithFlags(&l.stream, cudaStreamNonBlocking));
    }
    // Some calls in a row, so that the streams meet.
    auto const send = [&](lane const& l) {
      status sent;
      for (int n = 0; sent.ok() && n < 4; ++n) {
        sent = attend(l.call.q.view, l.call.k.view, l.call.v.view, l.call.out.view, l.call.lse,
                      {l.memory.data(), l.memory.bytes()}, {}, l.stream);
      }
      return sent;
    };
    auto const clear = [&] {
      for (lane& l : lanes) l.call.clear(), l.memory.refill();
      check_cuda(cudaDeviceSynchronize());
    };
    clear();
    REQUIRE(send(lanes[0]).ok());
    auto const first = outputs_of(lanes[0].call, lanes[0].stream);
    REQUIRE(send(lanes[1]).ok());
    auto const second = outputs_of(lanes[1].call, lanes[1].stream);
    CHECK_FALSE(same_bits(first, second));
    int differing = 0;
    for (int n = 0; n < 20; ++n) {
      clear();
      status sent;
      std::thread other([&] { sent = send(lanes[1]); });
      status const here = send(lanes[0]);
      other.join();
      REQUIRE(here.ok());
      REQUIRE(sent.ok());
      differing += !same_bits(outputs_of(lanes[0].call, lanes[0].stream), first);
      differing += !same_bits(outputs_of(lanes[1].call, lanes[1].stream), second);
    }
    CHECK(differing == 0);
    for (lane const& l : lanes) {
      CHECK(l.memory.guard_is_whole());
      cudaStreamDestroy(l.stream);
    }
  }
}

TEST_CASE("bad calls are refused before anything is written") {
  attention_shape const s{1, 2, 1, 40, 40, 64};
  auto const t = testing::random_tensors<bfloat16>(s, 1);
  auto const attend = attention{backend::cuda{}}.with(budget::fixed{.count = 8});
  device_call<bfloat16> call(t);
  poisoned const memory(attend.workspace_bytes<bfloat16>(s));
  workspace_view<device> const ws{memory.data(), memory.bytes()};
  auto const untouched = [&] {
    check_cuda(cudaDeviceSynchronize());
    std::vector<bfloat16> const out = call.out.download();
    return std::all_of(out.begin(), out.end(), [](bfloat16 x) { return x.bits == 0xffff; });
  };
  auto const refused = [&](status const& got, status_code code) {
    CHECK(got.code == code);
    CHECK(std::string(got.message).rfind("omnisparse: ", 0) == 0);
    CHECK(untouched());
  };
  refused(attend(call.q.view, call.k.view, call.v.view, call.out.view,
                 workspace_view<device>{ws.data, ws.bytes / 2}),
          status_code::workspace_too_small);
  refused(attend(call.q.view, call.k.view, call.v.view, call.out.view, workspace_view<device>{}),
          status_code::workspace_too_small);
  attention_plan<device> const plan(attention_shape{1, 2, 1, 40, 41, 64});
  refused(attend.run(call.q.view, call.k.view, call.v.view, plan, call.out.view, ws),
          status_code::invalid_plan);
  auto q = call.q.view, out = call.out.view;
  q.extents[3] = out.extents[3] = 44;
  auto k = call.k.view, v = call.v.view;
  k.extents[3] = v.extents[3] = 44;
  refused(attend(q, k, v, out, ws), status_code::unsupported);
  CHECK(attend.can_run<double>(s).code == status_code::unsupported);
  for (int const dim : {1, 8, 12, 20, 65, 127, 250, 264, 512}) {
    status const no = attend.can_run<float>({1, 2, 1, 40, 40, dim});
    CHECK(no.code == status_code::unsupported);
    CHECK(std::string(no.message).find("16 to 256 in steps of 8") != std::string::npos);
    CHECK(std::string(no.message).find("softmax_scale") != std::string::npos);
  }
  for (int dim = 16; dim <= 256; dim += 8) {
    CHECK(attend.can_run<float>({1, 2, 1, 40, 40, dim}).ok());
    status const runs = attend.can_run<bfloat16>({1, 2, 1, 40, 40, dim});
    CHECK(runs.ok());
    if (dim > 128) CHECK(std::string(runs.message).rfind("portable path", 0) == 0);
  }
  status const can = attend.can_run<bfloat16>(s);
  CHECK(can.ok());
  CHECK(std::string(can.message).find("path") != std::string::npos);

  // A list a row takes more memory than a functor of long chunks asks for.
  auto const dense = attention{backend::cuda{}};
  attention_plan<device> const short_chunks(s, {1});
  auto const run = [&](workspace_view<device> memory_of_run) {
    return dense.run(call.q.view, call.k.view, call.v.view, short_chunks, call.out.view,
                     memory_of_run);
  };
  std::size_t const usual = dense.workspace_bytes<bfloat16>(s);
  poisoned const enough(dense.with(chunk{1}).workspace_bytes<bfloat16>(s));
  status const too_small = run({enough.data(), usual});
  refused(too_small, status_code::workspace_too_small);
  CHECK(std::string(too_small.message).find(".with(chunk{plan.chunk_rows})") != std::string::npos);
  refused(run({}), status_code::workspace_too_small);
  CHECK(run({enough.data(), enough.bytes()}).ok());
  CHECK_FALSE(untouched());
}

TEST_CASE("offsets beyond 2^31 elements") {
  // One KV head so far into the tensor that 32-bit offsets would wrap.
  std::int64_t const gap = (std::int64_t{1} << 31) + 4096;
  attention_shape const s{1, 2, 2, 130, 130, 64};
  std::size_t const elements = static_cast<std::size_t>(gap) + 2u * 130u * 64u;
  buffer<device> far_keys(elements * sizeof(bfloat16)), far_values(elements * sizeof(bfloat16));
  if (!far_keys || !far_values) {
    MESSAGE("skipped: this GPU has less than 9 GB free");
    return;
  }
  auto const t = testing::random_tensors<bfloat16>(s, 11);
  testing::result<bfloat16> oracle(s);
  auto const slow = attention{backend::reference{}}.with(near_field{.window = 20, .sinks = 2});
  auto const by = [&](auto a) { return a.with(budget::fixed{.count = 9}); };
  REQUIRE(by(slow)(t.q_view(), t.k_view(), t.v_view(), oracle.out_view, oracle.lses, workspace<>{})
              .ok());
  for (backend::cuda const b : paths) {
    auto const fast = by(attention{b}.with(near_field{.window = 20, .sinks = 2}));
    device_call<bfloat16> call(t);
    auto const moved = [&](buffer<device> const& memory, std::vector<bfloat16> const& x) {
      auto* const to = static_cast<bfloat16*>(memory.data());
      std::size_t const head = 130u * 64u;
      check_cuda(cudaMemcpy(to, x.data(), head * 2, cudaMemcpyDefault));
      check_cuda(cudaMemcpy(to + gap, x.data() + head, head * 2, cudaMemcpyDefault));
      return tensor_view<bfloat16 const, device>(to, {1, 2, 130, 64}, {2 * gap, gap, 64, 1});
    };
    auto const k = moved(far_keys, t.k), v = moved(far_values, t.v);
    workspace<device> const memory(fast.workspace_bytes<bfloat16>(s));
    REQUIRE(fast(call.q.view, k, v, call.out.view, call.lse, memory).ok());
    check_cuda(cudaDeviceSynchronize());
    check_outputs(call, oracle, name_of(b));
  }
}
