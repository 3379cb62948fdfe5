// The portable path's stages against the reference, on shapes, plans and memories at the edges.
#include "support/stages.cuh"

#include <omnisparse/backend/cuda/portable.cuh>

using namespace testing_support;

namespace {

// Tiles are 64 or 128 rows by 16, 32, 64 or 128 keys: lengths at and beside all of them.
shape_case const shape_cases[] = {
    {{1, 2, 1, 1, 1}, 1, {}, {}},
    {{1, 3, 1, 129, 129}, 1, {}, {}},
    {{1, 7, 1, 100, 200}, 64, {}, {}},
    {{2, 4, 2, 63, 65}, 50, {}, {}},
    {{1, 6, 3, 64, 320}, 64, {}, {}},
    {{1, 2, 1, 300, 127}, 128, {}, {}},  // rows before the first key
    {{1, 16, 1, 33, 257}, 33, {}, {}},
    {{3, 2, 2, 100, 161}, 37, {0, 100, 37}, {161, 0, 48}},
    {{2, 3, 1, 65, 350}, 25, {65, 30}, {349, 193}},
    {{1, 1, 1, 256, 256}, 100, {}, {}},
};

near_field const fields[] = {{0, 0},    {1, 0},    {64, 4}, {63, 16},    {65, 17},
                             {5000, 3}, {20, 300}, {0, 5},  {300, 5000}, {17, 1}};

template <class T>
using memory_of = path_memory<launch::portable_memory<T>>;

template <class T, int D, bool Values>
void run_stages(attention_call<T, device> const& call, near_field near, mask limit,
                plan_view<device> const& plan, launch::portable_memory<T> const& m) {
  REQUIRE(launch::portable_near<T, D, Values>(call, near, limit, call.lse, m, {}).ok());
  REQUIRE(launch::portable_far<T, D, Values>(call, near, limit, plan, call.lse, m, {}).ok());
  REQUIRE(launch::portable_rescued<T, D, Values>(call, near, limit, plan, call.lse, m, {}).ok());
}

// The whole plan, in stages, with values and with keys only, against the reference. The plan's
// shape says the heads' dimension, D is that of the kernels.
template <class T, int D>
void check_stages(shape_case const& c, near_field near, mask limit, plan_view<host> const& plan,
                  layout order, std::string const& what, float sharpness = 1.f,
                  softmax_scale scale = {}) {
  attention_shape const s = plan.shape;
  auto const t = tensors_of<T>(c, s.dim, sharpness);
  device_inputs const in(s, c.q_lengths, c.kv_lengths);
  testing::result<T> oracle(s);
  auto const reference = attention{backend::reference{}}.with(near).with(limit).with(scale);
  REQUIRE(reference
              .run(t.q_view(), t.k_view(), t.v_view(), plan, oracle.out_view, oracle.lses,
                   workspace<>{}, in.on_host)
              .ok());
  auto const twin = to_device(plan);
  memory_of<T> const p(s, plan.chunk_rows, limit);
  device_call<T> x(t, order);
  auto call = x.call(in.on_device);
  call.scale = scale;
  run_stages<T, D, true>(call, near, limit, twin, p.m);
  check_cuda(cudaDeviceSynchronize());
  check_outputs(x, oracle, what);
  auto const whole = x.lses();
  x.clear();
  call.v = {};
  call.out = {};
  run_stages<T, D, false>(call, near, limit, twin, p.m);
  check_same_lse(whole, x.lses(), 0.f, what);
  CHECK(p.bytes.guard_is_whole());
}

constexpr layout orders[] = {layout::heads_first, layout::tokens_first, layout::unaligned};

template <class T, int D>
void check_plans(std::uint64_t seed) {
  testing::generator g(seed);
  int n = static_cast<int>(seed);
  for (shape_case const& c : shape_cases) {
    for (auto const kind : testing::plan_kinds) {
      if (++n % 3 != 0) continue;  // the other dtypes and dimensions take the others
      attention_shape const s = c.with_dim(D);
      near_field const near = fields[g.below(10)];
      mask const limit = g.below(2) == 0 ? mask::causal : mask::full;
      attention_plan<> const plan(s, {c.chunk_rows}, g.below(3) == 0 ? s.kv_tokens / 2 : -1);
      testing::fill_plan(plan, kind, g.bits());
      check_stages<T, D>(c, near, limit, plan, orders[g.below(3)],
                         describe(s, near, limit, std::to_string(static_cast<int>(kind))));
    }
  }
}

// Near field and dense attention of all rows.
template <class T, int D>
void check_in_order(std::uint64_t seed) {
  testing::generator g(seed);
  for (shape_case const& c : shape_cases) {
    attention_shape const s = c.with_dim(D);
    attention_plan<> const all(s), none(s);
    testing::fill_plan(all, testing::plan_kind::all_rescued, 1);
    auto const t = tensors_of<T>(c, D);
    device_inputs const in(s, c.q_lengths, c.kv_lengths);
    for (int n = 0; n < 5; ++n) {
      bool const dense = n < 2;
      mask const limit = n % 2 == 0 ? mask::causal : mask::full;
      near_field const near = dense ? near_field{} : fields[g.below(10)];
      testing::result<T> oracle(s);
      REQUIRE(attention{backend::reference{}}
                  .with(near)
                  .with(limit)
                  .run(t.q_view(), t.k_view(), t.v_view(), dense ? all : none, oracle.out_view,
                       oracle.lses, workspace<>{}, in.on_host)
                  .ok());
      device_call<T> x(t, orders[g.below(3)]);
      auto call = x.call(in.on_device);
      auto const what = describe(s, near, limit, "in order " + std::to_string(n));
      status const ran = dense
                             ? launch::portable_dense<T, D, true>(call, limit, x.lse, {}, {})
                             : launch::portable_near<T, D, true>(call, near, limit, x.lse, {}, {});
      REQUIRE(ran.ok());
      check_cuda(cudaDeviceSynchronize());
      check_outputs(x, oracle, what);
      if (!dense) continue;
      auto const whole = x.lses();
      x.clear();
      call.v = {};
      call.out = {};
      REQUIRE(launch::portable_dense<T, D, false>(call, limit, x.lse, {}, {}).ok());
      check_same_lse(whole, x.lses(), 0.f, what);
    }
  }
}

template <class T, int D>
void check_all(std::uint64_t seed) {
  check_in_order<T, D>(seed);
  check_plans<T, D>(seed);
}

}  // namespace

TEST_CASE("bfloat16 equals the reference in order and on any plan") {
  check_all<bfloat16, 64>(1);
  check_all<bfloat16, 128>(2);
  check_all<bfloat16, 256>(3);
}

TEST_CASE("half equals the reference in order and on any plan") {
  check_all<omnisparse::half, 64>(4);
  check_all<omnisparse::half, 128>(5);
  check_all<omnisparse::half, 256>(6);
}

TEST_CASE("float equals the reference in order and on any plan") {
  check_all<float, 64>(7);
  check_all<float, 128>(8);
  check_all<float, 256>(9);
}

TEST_CASE_TEMPLATE("heads of every dimension, under every scale", T, bfloat16, omnisparse::half,
                   float) {
  std::uint64_t seed = 70;
  for (int dim = 16; dim <= 256; dim += 8) {
    for (int n = dim / 8 % 3; n < 10; n += 3) {
      shape_case const& c = shape_cases[n];
      attention_shape const s = c.with_dim(dim);
      near_field const near = fields[++seed % 10];
      mask const limit = seed % 3 == 0 ? mask::full : mask::causal;
      attention_plan<> const plan(s, {c.chunk_rows});
      testing::fill_plan(plan, testing::plan_kind::random, seed);
      double const scales[] = {0, 0.05, 0.37};
      softmax_scale const scale{scales[seed % 3]};
      auto const what = describe(s, near, limit, "scale " + std::to_string(scale.value));
      auto const check = dim <= 64    ? check_stages<T, 64>
                         : dim <= 128 ? check_stages<T, 128>
                                      : check_stages<T, 256>;
      check(c, near, limit, plan, orders[seed % 3], what, 1.f, scale);
    }
  }
}

TEST_CASE("logits of 1e4 give neither NaN nor infinity") {
  shape_case const c{{1, 2, 1, 150, 300}, 50, {}, {}};
  for (auto const kind : {testing::plan_kind::random, testing::plan_kind::last_token}) {
    attention_plan<> const plan(c.with_dim(128), {50});
    testing::fill_plan(plan, kind, 1);
    for (float const sharpness : {64.f, 800.f}) {
      check_stages<bfloat16, 128>(c, {0, 0}, mask::causal, plan, layout::heads_first, "huge logits",
                                  sharpness);
      check_stages<bfloat16, 128>(c, {3, 1}, mask::full, plan, layout::unaligned,
                                  "huge logits, full", sharpness);
    }
  }
}

TEST_CASE_TEMPLATE("NaN and infinity reach only the rows that see them", T, bfloat16, float) {
  constexpr int D = 64, at = 90;
  attention_shape const s{1, 3, 1, 150, 150, D};
  near_field const near{10, 2};
  attention_plan<> const plan(s, chunk{40});
  testing::fill_plan(plan, testing::plan_kind::random, 2);
  auto const twin = to_device(plan);
  memory_of<T> const p(s, 40, mask::causal);
  auto const clean = testing::random_tensors<T>(s, 5);
  testing::result<T> oracle(s);
  REQUIRE(attention{backend::reference{}}
              .with(near)
              .run(clean.q_view(), clean.k_view(), clean.v_view(), plan.view(), oracle.out_view,
                   oracle.lses, workspace<>{})
              .ok());
  auto const sees = [&](int h, int i) {
    auto const kind = plan.view().rows_at(0, h)[i];
    int const* const kept = plan.view().kept_at(0, i / 40, 0);
    int const* const end = kept + plan.view().kept_counts[i / 40];
    return at <= i && (i - at < near.window || kind == row_class::rescued ||
                       (kind == row_class::active && std::binary_search(kept, end, at)));
  };
  for (float const bad : {__builtin_nanf(""), __builtin_inff(), -__builtin_inff()}) {
    for (int const where : {0, 1, 2}) {  // all of a key; all of a value; one element of a value
      auto dirty = clean;
      for (int d = 0; d < (where == 2 ? 1 : D); ++d) {
        auto& x = where == 0 ? dirty.k : dirty.v;
        x[static_cast<std::size_t>(at * D + d + (where == 2 ? 13 : 0))] = static_cast<T>(bad);
      }
      device_call<T> x(dirty);
      run_stages<T, D, true>(x.call(), near, mask::causal, twin, p.m);
      auto const out = x.out.download();
      int unseen = 0, seen = 0, wrong = 0;
      for (int h = 0; h < 3; ++h) {
        for (int i = 0; i < 150; ++i) {
          bool const reached = sees(h, i);
          (reached ? seen : unseen) += 1;
          for (int d = 0; d < D; ++d) {
            auto const n = static_cast<std::size_t>((h * 150 + i) * D + d);
            float const value = static_cast<float>(out[n]);
            bool const broken = reached && (where == 1 || (where == 2 && d == 13));
            if (broken) wrong += std::isfinite(value);
            else if (reached && where == 0) continue;
            else wrong += !(std::abs(value - static_cast<float>(oracle.out[n])) < 0.02f);
          }
        }
      }
      CHECK(unseen > 100);
      CHECK(seen > 20);
      CHECK_MESSAGE(wrong == 0, bad << " at " << where);
    }
  }
}

TEST_CASE("a damaged plan reads and writes nothing outside of the tensors") {
  attention_shape const s{2, 6, 2, 150, 200, 64};
  testing::generator g(5);
  attention_plan<> const plan(s, {50}, 90);
  auto const view = plan.view();
  for (std::int64_t n = 0; n < view.row_count(); ++n) {
    view.rows[n] = static_cast<row_class>(g.below(5));
  }
  for (std::int64_t n = 0; n < view.list_count(); ++n) {
    view.kept_counts[n] = n % 3 == 0 ? static_cast<int>(g.bits()) : g.below(91);
    for (int e = 0; e < 90; ++e) view.kept[n * 90 + e] = static_cast<int>(g.bits());
  }
  auto const twin = to_device(view);
  auto const t = testing::random_tensors<bfloat16>(s, 7);
  for (mask const limit : {mask::causal, mask::full}) {
    memory_of<bfloat16> const p(s, 50, limit);
    device_call<bfloat16> x(t);
    run_stages<bfloat16, 64, true>(x.call(), {10, 3}, limit, twin, p.m);
    check_cuda(cudaDeviceSynchronize());
    int bad = 0;
    for (auto const value : x.out.download()) bad += !std::isfinite(static_cast<float>(value));
    CHECK(bad == 0);
    CHECK(p.bytes.guard_is_whole());
  }
}

TEST_CASE("offsets beyond 2^31 elements") {
  constexpr int D = 64;
  attention_shape const s{1, 2, 1, 40, 4200, D};
  std::int64_t const step = 524288;  // elements from key to key
  buffer<device> const memory(static_cast<std::size_t>(step * s.kv_tokens) * sizeof(bfloat16));
  if (!memory) {
    MESSAGE("skipped: no 4.4 GB of device memory");
    return;
  }
  auto const t = testing::random_tensors<bfloat16>(s, 11, 1.5f);
  auto* const first = static_cast<bfloat16*>(memory.data());
  constexpr std::size_t row = D * sizeof(bfloat16);
  auto const pitch = static_cast<std::size_t>(step) * sizeof(bfloat16);
  auto const keys = static_cast<std::size_t>(s.kv_tokens);
  check_cuda(cudaMemcpy2D(first, pitch, t.k.data(), row, row, keys, cudaMemcpyDefault));
  check_cuda(cudaMemcpy2D(first + D, pitch, t.v.data(), row, row, keys, cudaMemcpyDefault));
  int const extents[4] = {1, 1, s.kv_tokens, D};
  tensor_view<bfloat16, device> const k(first, extents, {0, 0, step, 1});
  tensor_view<bfloat16, device> const v(first + D, extents, {0, 0, step, 1});
  near_field const near{50, 3};
  attention_plan<> const plan(s, {20});
  testing::fill_plan(plan, testing::plan_kind::random, 3);
  auto const twin = to_device(plan);
  testing::result<bfloat16> oracle(s);
  REQUIRE(attention{backend::reference{}}
              .with(near)
              .run(t.q_view(), t.k_view(), t.v_view(), plan.view(), oracle.out_view, oracle.lses,
                   workspace<>{})
              .ok());
  memory_of<bfloat16> const p(s, 20, mask::causal);
  device_call<bfloat16> x(t);
  run_stages<bfloat16, D, true>({s, x.q.view, k, v, x.out.view, x.lse}, near, mask::causal, twin,
                                p.m);
  check_cuda(cudaDeviceSynchronize());
  check_outputs(x, oracle, "beyond 2^31");
}

TEST_CASE("the same bits, 1000 times") {
  attention_shape const s{1, 7, 1, 300, 300, 64};
  auto const t = testing::random_tensors<bfloat16>(s, 5);
  attention_plan<> const plan(s, {128});
  testing::fill_plan(plan, testing::plan_kind::random, 9);
  auto const twin = to_device(plan);
  memory_of<bfloat16> p(s, 128, mask::causal);
  device_call<bfloat16> x(t);
  std::vector<bfloat16> first;
  int different = 0;
  for (int run = 0; run < 1000; ++run) {
    x.clear();
    p.bytes.refill();
    run_stages<bfloat16, 64, true>(x.call(), {40, 4}, mask::causal, twin, p.m);
    auto const values = x.out.download();
    if (run == 0) first = values;
    different += std::memcmp(first.data(), values.data(), values.size() * sizeof(bfloat16)) != 0;
  }
  CHECK(different == 0);
}

TEST_CASE("the bits of a row do not depend on the rows beside it") {
  attention_shape const s{1, 7, 1, 300, 400, 128};
  auto const t = testing::random_tensors<bfloat16>(s, 6);
  attention_plan<> const owner(s, {128});
  auto const plan = owner.view();
  for (mask const limit : {mask::causal, mask::full}) {
    testing::fill_plan(plan, testing::plan_kind::random, 1);
    for (std::int64_t r = 0; r < plan.row_count(); ++r) plan.rows[r] = row_class::active;
    testing::generator g(4);
    std::vector<bfloat16> outs[2];
    for (auto& out : outs) {
      auto const twin = to_device(plan);
      memory_of<bfloat16> const p(s, 128, limit);
      device_call<bfloat16> x(t);
      run_stages<bfloat16, 128, true>(x.call(), {40, 4}, limit, twin, p.m);
      out = x.out.download();
      for (std::int64_t r = 0; r < plan.row_count(); ++r) {  // some rows leave
        if (g.below(3) == 0) plan.rows[r] = static_cast<row_class>(2 * g.below(2));
      }
      if (&out == &outs[0]) continue;
      int different = 0;
      for (std::int64_t r = 0; r < plan.row_count(); ++r) {  // those that were active twice
        if (plan.rows[r] != row_class::active) continue;
        different +=
            std::memcmp(&outs[0][static_cast<std::size_t>(r * 128)],
                        &outs[1][static_cast<std::size_t>(r * 128)], 128 * sizeof(bfloat16)) != 0;
      }
      CHECK(different == 0);
    }
  }
}
