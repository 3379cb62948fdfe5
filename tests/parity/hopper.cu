// The Hopper path's stages against the definition, on shapes, plans and memories at the edges.
#include "support/stages.cuh"

#include <omnisparse/backend/cuda/hopper.cuh>

using namespace testing_support;

namespace {

// Tiles are 128 or 192 rows by 128 keys: lengths at and beside both.
shape_case const shape_cases[] = {
    {{1, 2, 1, 1, 1}, 1, {}, {}},
    {{1, 3, 1, 257, 257}, 1, {}, {}},
    {{1, 7, 1, 200, 300}, 64, {}, {}},
    {{2, 4, 2, 127, 129}, 100, {}, {}},
    {{1, 6, 3, 193, 640}, 128, {}, {}},
    {{1, 2, 1, 600, 257}, 256, {}, {}},
    {{1, 16, 1, 65, 513}, 65, {}, {}},
    {{3, 2, 2, 200, 333}, 77, {0, 200, 77}, {333, 0, 100}},
    {{2, 3, 1, 130, 700}, 50, {130, 60}, {699, 385}},
    {{1, 1, 1, 512, 512}, 200, {}, {}},
    {{4, 2, 1, 70, 90}, 32, {70, 3, 70, 1}, {7, 10, 16, 90}},  // fewer keys than a narrow tile
};

near_field const fields[] = {{0, 0},    {1, 0},    {64, 4},   {127, 16}, {128, 17},
                             {129, 16}, {5000, 3}, {20, 300}, {0, 5},    {300, 5000}};

// The definition by a boolean test for every (row, key), in double: a block a row, 64 threads.
template <class T>
__global__ void attend_by_definition(attention_call<T, device> call, near_field near, mask limit,
                                     plan_view<device> plan, T* out, float* lse) {
  attention_shape const& s = call.shape;
  int const i = static_cast<int>(blockIdx.x), h = static_cast<int>(blockIdx.y);
  int const b = static_cast<int>(blockIdx.z), t = static_cast<int>(threadIdx.x), g = h / s.group();
  sequence_extent const extent = extent_of(s, call.in, b);
  row_class const kind = plan.rows_at(b, h)[i];
  int const* const kept = plan.kept_at(b, i / plan.chunk_rows, g);
  int const count = plan.kept_counts[plan.list(b, i / plan.chunk_rows, g)];
  int const position = extent.kv_tokens - extent.q_tokens + i;
  __shared__ double shares[64];
  double sums[2] = {}, whole = 0, high = -1e300;
  for (int pass = 0; pass < 2; ++pass) {  // the maximum, then the sums
    for (int first = 0; i < extent.q_tokens && first < extent.kv_tokens; first += 64) {
      int const j = first + t;
      bool sees = j < extent.kv_tokens && (limit == mask::full || j <= position);
      if (sees && j >= near.sinks && abs(position - j) >= near.window) {
        bool listed = false;
        for (int n = 0; kind == row_class::active && n < count; ++n) listed |= kept[n] == j;
        sees = kind == row_class::rescued || listed;
      }
      double logit = -1e300;
      if (sees) {
        logit = 0;
        for (int d = 0; d < s.dim; ++d) {
          logit +=
              static_cast<double>(call.q(b, h, i, d)) * static_cast<double>(call.k(b, g, j, d));
        }
        logit *= call.scale.template of<double>(s.dim);
      }
      shares[t] = pass == 0 ? logit : sees ? exp(logit - high) : 0;
      __syncthreads();
      for (int n = 0; n < 64; ++n) {
        if (pass == 0) high = fmax(high, shares[n]);
        if (pass == 0 || shares[n] == 0) continue;
        whole += shares[n];
        for (int k = 0; t + 64 * k < s.dim; ++k) {
          sums[k] += shares[n] * static_cast<double>(call.v(b, g, first + n, t + 64 * k));
        }
      }
      __syncthreads();
    }
  }
  std::int64_t const row = (std::int64_t{b} * s.q_heads + h) * s.q_tokens + i;
  for (int k = 0; t + 64 * k < s.dim; ++k) {
    out[row * s.dim + t + 64 * k] =
        static_cast<T>(whole > 0 ? static_cast<float>(sums[k] / whole) : 0.f);
  }
  if (t == 0) lse[row] = whole > 0 ? static_cast<float>(high + log(whole)) : empty_lse();
}

template <class T>
void fill_oracle(testing::result<T>& oracle, attention_call<T, device> const& call, near_field near,
                 mask limit, plan_view<device> const& plan) {
  attention_shape const& s = call.shape;
  buffer<device> const out(oracle.out.size() * sizeof(T)), lse(oracle.lse.size() * sizeof(float));
  dim3 const grid(static_cast<unsigned>(s.q_tokens), static_cast<unsigned>(s.q_heads),
                  static_cast<unsigned>(s.batch));
  attend_by_definition<<<grid, 64>>>(call, near, limit, plan, static_cast<T*>(out.data()),
                                     static_cast<float*>(lse.data()));
  check_cuda(cudaMemcpy(oracle.out.data(), out.data(), out.bytes(), cudaMemcpyDefault));
  check_cuda(cudaMemcpy(oracle.lse.data(), lse.data(), lse.bytes(), cudaMemcpyDefault));
}

template <class T>
using memory_of = path_memory<launch::hopper_memory<T>>;

template <class T, int D, bool Values>
void run_stages(attention_call<T, device> const& call, near_field near, mask limit,
                plan_view<device> const& plan, launch::hopper_memory<T> const& m) {
  REQUIRE(launch::hopper_near<T, D, Values>(call, near, limit, call.lse, m, {}).ok());
  REQUIRE(launch::hopper_far<T, D, Values>(call, near, limit, plan, call.lse, m, {}).ok());
  REQUIRE(launch::hopper_rescued<T, D, Values>(call, near, limit, plan, call.lse, m, {}).ok());
}

// The whole plan, in stages, with values and with keys only, against the definition. The plan's
// shape says the heads' dimension, D is that of the kernels.
template <class T, int D>
void check_stages(shape_case const& c, near_field near, mask limit, plan_view<host> const& plan,
                  layout order, launch::packing room, std::string const& what,
                  float sharpness = 1.f, softmax_scale scale = {}) {
  attention_shape const s = plan.shape;
  device_inputs const in(s, c.q_lengths, c.kv_lengths);
  make_missing_rows_lazy(plan, in.on_host);
  auto const twin = to_device(plan);
  memory_of<T> const memory(s, plan.chunk_rows, limit, plan.capacity, room);
  device_call<T> x(tensors_of<T>(c, s.dim, sharpness), order);
  auto call = x.call(in.on_device);
  call.scale = scale;
  testing::result<T> oracle(s);
  fill_oracle(oracle, call, near, limit, twin);
  REQUIRE(launch::hopper_can_read(call));
  run_stages<T, D, true>(call, near, limit, twin, memory.m);
  check_cuda(cudaDeviceSynchronize());
  check_outputs(x, oracle, what);

  auto const whole = x.lses();
  x.clear();
  call.v = {};
  call.out = {};
  run_stages<T, D, false>(call, near, limit, twin, memory.m);
  check_same_lse(whole, x.lses(), 1e-5f, what);
  CHECK(memory.bytes.guard_is_whole());
}

// Whether this GPU has the Hopper kernels; says so where it has not.
bool has_hopper() {
  status const s = launch::hopper_can_run<bfloat16>({1, 1, 1, 1, 1, 128});
  if (!s.ok()) MESSAGE(std::string(s.message));
  return s.ok();
}

template <class T, int D>
void check_plans(std::uint64_t seed) {
  testing::generator g(seed);
  for (shape_case const& c : shape_cases) {
    for (auto const kind : testing::plan_kinds) {
      attention_shape const s = c.with_dim(D);
      near_field const near = fields[g.below(10)];
      mask const limit = g.below(2) == 0 ? mask::causal : mask::full;
      attention_plan<> const plan(s, {c.chunk_rows}, g.below(3) == 0 ? s.kv_tokens / 2 : -1);
      testing::fill_plan(plan, kind, g.bits());
      auto const order = g.below(2) == 0 ? layout::heads_first : layout::tokens_first;
      auto const room = g.below(2) == 0 ? launch::packing::least : launch::packing::usual;
      check_stages<T, D>(
          c, near, limit, plan, order, room,
          describe(s, near, limit, "plan " + std::to_string(static_cast<int>(kind))));
    }
  }
}

template <class T, int D>
void check_in_order() {
  for (shape_case const& c : shape_cases) {
    attention_shape const s = c.with_dim(D);
    attention_plan<> const plan(s);
    testing::fill_plan(plan, testing::plan_kind::all_rescued, 1);
    auto const all = to_device(plan), none = to_device(attention_plan<>(s));
    auto const t = tensors_of<T>(c, D);
    device_inputs const in(s, c.q_lengths, c.kv_lengths);
    buffer<device> const counter(256);
    launch::hopper_memory<T> m;
    m.counter = static_cast<int*>(counter.data());
    for (mask const limit : {mask::causal, mask::full}) {
      for (int n = -1; n < 10; ++n) {  // -1: dense
        near_field const near = n < 0 ? near_field{} : fields[n];
        device_call<T> x(t, n % 2 == 0 ? layout::heads_first : layout::tokens_first);
        auto const call = x.call(in.on_device);
        testing::result<T> oracle(s);
        fill_oracle(oracle, call, near, limit, n < 0 ? all : none);
        status const ran = n < 0 ? launch::hopper_dense<T, D, true>(call, limit, x.lse, m, {})
                                 : launch::hopper_near<T, D, true>(call, near, limit, x.lse, m, {});
        REQUIRE(ran.ok());
        check_cuda(cudaDeviceSynchronize());
        check_outputs(x, oracle, describe(s, near, limit, "in order " + std::to_string(n)));
      }
    }
  }
}

}  // namespace

TEST_CASE_TEMPLATE("rows in order equal the definition", T, bfloat16, omnisparse::half) {
  if (!has_hopper()) return;
  check_in_order<T, 64>();
  check_in_order<T, 128>();
}

TEST_CASE_TEMPLATE("near, far and rescued rows equal the definition on any plan", T, bfloat16,
                   omnisparse::half) {
  if (!has_hopper()) return;
  check_plans<T, 64>(3);
  check_plans<T, 128>(4);
}

TEST_CASE_TEMPLATE("heads of every dimension, under every scale", T, bfloat16, omnisparse::half) {
  if (!has_hopper()) return;
  std::uint64_t seed = 70;
  for (int const n : {2, 3, 7, 8}) {
    for (int dim = 16; dim <= 128; dim += 8) {
      shape_case const& c = shape_cases[n];
      attention_shape const s = c.with_dim(dim);
      near_field const near = fields[++seed % 10];
      mask const limit = seed % 3 == 0 ? mask::full : mask::causal;
      attention_plan<> const plan(s, {c.chunk_rows});
      testing::fill_plan(plan, testing::plan_kind::random, seed);
      auto const order = seed % 2 == 0 ? layout::heads_first : layout::tokens_first;
      double const scales[] = {0, 0.05, 0.37};
      softmax_scale const scale{scales[seed % 3]};
      auto const what = describe(s, near, limit, "scale " + std::to_string(scale.value));
      auto const check = dim <= 64 ? check_stages<T, 64> : check_stages<T, 128>;
      check(c, near, limit, plan, order, launch::packing::usual, what, 1.f, scale);
    }
  }
}

TEST_CASE("huge logits give neither NaN nor infinity") {
  if (!has_hopper()) return;
  shape_case const c{{1, 2, 1, 300, 600}, 50, {}, {}};
  for (auto const kind : {testing::plan_kind::random, testing::plan_kind::last_token}) {
    attention_plan<> const plan(c.with_dim(128), {50});
    testing::fill_plan(plan, kind, 1);
    // A few keys of equal weight decide each row.
    check_stages<bfloat16, 128>(c, {0, 0}, mask::causal, plan, layout::heads_first,
                                launch::packing::usual, "huge logits", 64.f);
    check_stages<bfloat16, 128>(c, {3, 1}, mask::full, plan, layout::tokens_first,
                                launch::packing::least, "huge logits, full", 64.f);
  }
}

TEST_CASE("the same bits, 1000 times") {
  if (!has_hopper()) return;
  attention_shape const s{1, 7, 1, 700, 700, 64};
  auto const t = testing::random_tensors<bfloat16>(s, 5);
  attention_plan<> const plan(s, {256});
  testing::fill_plan(plan, testing::plan_kind::random, 9);
  auto const twin = to_device(plan);
  memory_of<bfloat16> memory(s, 256, mask::causal, s.kv_tokens);
  device_call<bfloat16> x(t);
  std::vector<bfloat16> first;
  for (int run = 0; run < 1000; ++run) {
    x.clear();
    memory.bytes.refill();
    run_stages<bfloat16, 64, true>(x.call(), {100, 16}, mask::causal, twin, memory.m);
    auto const values = x.out.download();
    if (run == 0) first = values;
    REQUIRE(std::memcmp(first.data(), values.data(), values.size() * sizeof(bfloat16)) == 0);
  }
}

TEST_CASE("the bits of an active row do not depend on which rows are active beside it") {
  if (!has_hopper()) return;
  for (mask const limit : {mask::causal, mask::full}) {
    attention_shape const s{1, 7, 1, 900, 900, 128};
    auto const t = testing::random_tensors<bfloat16>(s, 5);
    attention_plan<> const plan(s, {300});
    testing::fill_plan(plan, testing::plan_kind::random, 9);
    memory_of<bfloat16> const memory(s, 300, limit, s.kv_tokens);
    auto const& m = memory.m;
    device_call<bfloat16> x(t);
    auto const call = x.call();
    near_field const near{40, 4};
    std::vector<bfloat16> outs[2];
    std::vector<float> lses[2];
    auto* const rows = plan.view().rows;
    for (int round = 0; round < 2; ++round) {
      if (round == 1) {  // two of three active rows drop out
        for (int n = 0; n < s.q_heads * s.q_tokens; ++n) {
          if (rows[n] == row_class::active && n % 3 != 0) rows[n] = row_class::lazy;
        }
      }
      auto const twin = to_device(plan);
      x.clear();
      REQUIRE((launch::hopper_near<bfloat16, 128, true>(call, near, limit, x.lse, m, {}).ok()));
      REQUIRE(
          (launch::hopper_far<bfloat16, 128, true>(call, near, limit, twin, x.lse, m, {}).ok()));
      outs[round] = x.out.download();
      lses[round] = x.lses();
    }
    int same = 0, compared = 0;
    for (int n = 0; n < s.q_heads * s.q_tokens; ++n) {
      if (rows[n] != row_class::active) continue;
      ++compared;
      same += lses[0][static_cast<std::size_t>(n)] == lses[1][static_cast<std::size_t>(n)] &&
              std::memcmp(&outs[0][static_cast<std::size_t>(n * 128)],
                          &outs[1][static_cast<std::size_t>(n * 128)], 256) == 0;
    }
    CHECK(compared > 500);
    CHECK(same == compared);
  }
}

TEST_CASE("views that the copy engine cannot read are told apart") {
  attention_shape const s{1, 2, 1, 4, 4, 64};
  alignas(16) static bfloat16 memory[4096];
  tensor_view<bfloat16 const, device> const whole(memory, {1, 2, 4, 64});
  CHECK(launch::is_copyable(whole));
  CHECK_FALSE(launch::is_copyable(tensor_view<bfloat16 const, device>(memory + 1, {1, 2, 4, 64})));
  CHECK_FALSE(launch::is_copyable(
      tensor_view<bfloat16 const, device>(memory, {1, 2, 4, 64}, {0, 272, 68, 1})));
  // The stride of a single index means nothing; a stride of 0 over more repeats elements.
  CHECK(launch::is_copyable(
      tensor_view<bfloat16 const, device>(memory, {1, 2, 4, 64}, {3, 256, 64, 1})));
  CHECK_FALSE(launch::is_copyable(
      tensor_view<bfloat16 const, device>(memory, {1, 2, 4, 64}, {512, 0, 64, 1})));
  static_cast<void>(s);
}
