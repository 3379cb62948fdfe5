// What must not matter, what must show, and what must not overflow: memory where nothing exists,
// NaN among the inputs, values at the end of their range. On both paths of the GPU.
#include "support/compare_plans.hpp"
#include "support/stages.cuh"

#include <cstring>

using namespace testing_support;

namespace {

constexpr backend::cuda paths[] = {{}, {.path = backend::cuda_path::portable}};

template <class T>
constexpr float largest = std::is_same_v<T, omnisparse::half> ? 65504.f : 1e38f;

// What a finished call left: compared bit by bit.
template <class T>
struct outcome {
  std::vector<T> out;
  std::vector<float> lse;

  explicit outcome(device_call<T> const& call) : out(call.out.download()), lse(call.lses()) {}
  bool same_row(outcome const& other, int row, int dim) const {
    auto const r = static_cast<std::size_t>(row), d = static_cast<std::size_t>(dim);
    return std::memcmp(&lse[r], &other.lse[r], sizeof(float)) == 0 &&
           std::memcmp(&out[r * d], &other.out[r * d], d * sizeof(T)) == 0;
  }
};

// A batch of sequences of different lengths.
struct ragged {
  attention_shape shape;
  std::vector<int> q_lengths, kv_lengths;
};

ragged const batches[] = {
    {{3, 4, 2, 150, 300, 0}, {150, 70, 0}, {300, 133, 7}},
    {{2, 7, 1, 90, 1500, 0}, {90, 33}, {1401, 897}},
    {{2, 2, 2, 200, 140, 0}, {200, 129}, {139, 65}},
};

// Tensors of a batch whose missing rows and keys are `nothing`.
template <class T>
testing::tensors<T> tensors_of(ragged const& batch, attention_shape const& s, T nothing) {
  auto t = testing::random_tensors<T>(s, 9);
  auto const fill = [&](std::vector<T>& x, std::vector<int> const& lengths, int heads, int tokens) {
    for (std::size_t n = 0; n < x.size(); ++n) {
      auto const token = static_cast<int>(n / static_cast<std::size_t>(s.dim));
      if (token % tokens >= lengths[static_cast<std::size_t>(token / tokens / heads)]) {
        x[n] = nothing;
      }
    }
  };
  fill(t.q, batch.q_lengths, s.q_heads, s.q_tokens);
  fill(t.k, batch.kv_lengths, s.kv_heads, s.kv_tokens);
  fill(t.v, batch.kv_lengths, s.kv_heads, s.kv_tokens);
  return t;
}

template <class T>
std::vector<T> spoilers() {
  T payload;
  std::memset(static_cast<void*>(&payload), 0xff, sizeof payload);
  float const inf = __builtin_inff();
  return {static_cast<T>(0.f),  static_cast<T>(__builtin_nanf("")), static_cast<T>(inf),
          static_cast<T>(-inf), static_cast<T>(largest<T>),         payload};
}

// Calls act(memory, call) with clean padding first, then with every other one, and compares.
template <class T, class Bytes, class Act>
void check_padding(ragged const& batch, int dim, layout order, std::string const& what,
                   Bytes const& bytes, Act const& act) {
  attention_shape s = batch.shape;
  s.dim = dim;
  std::vector<outcome<T>> clean;
  int n = 0;
  for (T const nothing : spoilers<T>()) {
    std::vector<segment> kinds;  // those of missing keys change, too
    for (int j = 0; j < s.batch * s.kv_tokens; ++j) {
      int const length = batch.kv_lengths[static_cast<std::size_t>(j / s.kv_tokens)];
      bool const text = j % s.kv_tokens < length ? j % 11 == 3 : n % 2 == 1;
      kinds.push_back(text ? segment::text : segment::visual);
    }
    device_inputs const in(s, batch.q_lengths, batch.kv_lengths, kinds);
    device_call<T> call(tensors_of<T>(batch, s, nothing), order);
    poisoned const memory(bytes(s));
    if (n == 0) check_cuda(cudaMemset(memory.data(), 0, memory.bytes()));
    status const ran = act(s, call, in.on_device, {memory.data(), memory.bytes()}, n);
    REQUIRE_MESSAGE(ran.ok(), std::string(ran.message));
    check_cuda(cudaDeviceSynchronize());
    outcome<T> const got(call);
    if (n == 0) clean.push_back(got);
    int different = 0, infinite = 0;
    for (int row = 0; row < s.batch * s.q_heads * s.q_tokens; ++row) {
      different += !got.same_row(clean[0], row, dim);
    }
    for (T const x : got.out) infinite += !std::isfinite(static_cast<float>(x));
    CHECK_MESSAGE(different == 0,
                  what << " D " << dim << ": rows that padding " << n << " changed: " << different);
    CHECK_MESSAGE(infinite == 0, what << " D " << dim << ": elements not finite: " << infinite);
    CHECK(memory.guard_is_whole());
    ++n;
  }
}

template <class A>
auto sparse(A a, mask limit) {
  return a.with(near_field{.window = 30, .sinks = 3})
      .with(limit)
      .with(chunk{64})
      .with(selector::far_mass{.epsilon = 0.3f})
      .with(budget::per_head{.recall = 0.8f})
      .with(rescue::coverage{.least = 0.6f});
}

template <class T>
void check_all_padding(ragged const& batch, int dim, layout order, mask limit, backend::cuda b) {
  std::string const what = b.path == backend::cuda_path::portable ? "portable" : "automatic";
  auto const dense = attention{b}.with(limit);
  check_padding<T>(
      batch, dim, order, what + " dense",
      [&](attention_shape const& s) { return dense.template workspace_bytes<T>(s); },
      [&](auto const&, auto const& x, auto const& in, workspace_view<device> ws, int) {
        return dense(x.q.view, x.k.view, x.v.view, x.out.view, x.lse, ws, in);
      });
  auto const planning = sparse(attention{b}, limit);
  check_padding<T>(
      batch, dim, order, what + " planned",
      [&](attention_shape const& s) { return planning.template workspace_bytes<T>(s); },
      [&](auto const&, auto const& x, auto const& in, workspace_view<device> ws, int) {
        return planning(x.q.view, x.k.view, x.v.view, x.out.view, x.lse, ws, in);
      });
  // A plan by hand: its lists name missing keys, and something follows their last entries.
  auto const given = dense.with(near_field{.window = 20, .sinks = 5}).with(chunk{64});
  for (auto const kind : {testing::plan_kind::random, testing::plan_kind::all_active}) {
    check_padding<T>(
        batch, dim, order, what + " given",
        [&](attention_shape const& s) { return given.template workspace_bytes<T>(s); },
        [&](auto const& s, auto const& x, auto const& in, workspace_view<device> ws, int n) {
          attention_plan<host> const plan(s, {64});
          testing::fill_plan(plan, kind, 3);
          auto const view = plan.view();
          int const tails[] = {0, -1, 0x7fffffff, s.kv_tokens - 1, 1, -0x7fffffff - 1};
          for (std::int64_t l = 0; l < view.list_count(); ++l) {
            for (int e = view.kept_counts[l]; e < view.capacity; ++e) {
              view.kept[l * view.capacity + e] = tails[n % 6];
            }
          }
          auto const twin = to_device(view);
          status const ran =
              given.run(x.q.view, x.k.view, x.v.view, twin, x.out.view, x.lse, ws, in);
          check_cuda(cudaDeviceSynchronize());  // before the plan goes
          return ran;
        });
  }
}

}  // namespace

TEST_CASE_TEMPLATE("what does not exist changes no bit", T, bfloat16, omnisparse::half, float) {
  int n = 0;
  for (ragged const& batch : batches) {
    for (int const dim : {40, 64, 72, 128, 160}) {
      auto const limit = ++n % 3 == 0 ? mask::full : mask::causal;
      for (backend::cuda const b : paths) {
        check_all_padding<T>(batch, dim, static_cast<layout>(n % 3), limit, b);
      }
    }
  }
}

TEST_CASE_TEMPLATE("NaN that a row sees shows in its out and its lse", T, bfloat16,
                   omnisparse::half, float) {
  constexpr int at = 90, tokens = 150, heads = 3;
  near_field const near{10, 2};
  for (int const dim : {64, 72, 128}) {
    attention_shape const s{1, heads, 1, tokens, tokens, dim};
    attention_plan<> const plan(s, chunk{40});
    testing::fill_plan(plan, testing::plan_kind::random, 2);
    auto const twin = to_device(plan);
    auto const clean = testing::random_tensors<T>(s, 5);
    auto const view = plan.view();
    auto const sees = [&](int h, int i) {
      auto const kind = view.rows_at(0, h)[i];
      int const* const kept = view.kept_at(0, i / 40, 0);
      int const* const end = kept + view.kept_counts[i / 40];
      return at <= i && (i - at < near.window || kind == row_class::rescued ||
                         (kind == row_class::active && std::binary_search(kept, end, at)));
    };
    for (backend::cuda const b : paths) {
      auto const fast = attention{b}.with(near).with(chunk{40});
      auto const run = [&](testing::tensors<T> const& t) {
        device_call<T> x(t);
        workspace<device> const memory(fast.template workspace_bytes<T>(s));
        REQUIRE(fast.run(x.q.view, x.k.view, x.v.view, twin, x.out.view, x.lse, memory).ok());
        check_cuda(cudaDeviceSynchronize());
        return outcome<T>(x);
      };
      auto const wanted = run(clean);
      enum { all_of_key, one_of_key, one_of_value, one_of_row };
      for (int const where : {all_of_key, one_of_key, one_of_value, one_of_row}) {
        auto dirty = clean;
        auto& x = where == one_of_row ? dirty.q : where == one_of_value ? dirty.v : dirty.k;
        for (int d = 0; d < (where == all_of_key ? dim : 1); ++d) {
          x[static_cast<std::size_t>(at * dim + d + (where == all_of_key ? 0 : 13))] =
              static_cast<T>(__builtin_nanf(""));
        }
        auto const got = run(dirty);
        int wrong = 0, reached = 0;
        for (int row = 0; row < heads * tokens; ++row) {
          int const h = row / tokens, i = row % tokens;
          auto const r = static_cast<std::size_t>(row);
          bool const hit = where == one_of_row ? row == at : sees(h, i);
          reached += hit;
          if (where == one_of_value) {  // other rows of a tile of 64 may meet it
            auto const element = got.out[r * static_cast<std::size_t>(dim) + 13];
            wrong += hit && !std::isnan(static_cast<float>(element));
            wrong += got.lse[r] != wanted.lse[r];
          } else if (hit) {
            wrong += !std::isnan(got.lse[r]);
            for (int d = 0; d < dim; ++d) {
              auto const n = r * static_cast<std::size_t>(dim) + static_cast<std::size_t>(d);
              wrong += !std::isnan(static_cast<float>(got.out[n]));
            }
          } else {
            wrong += !got.same_row(wanted, row, dim);
          }
        }
        CHECK(reached > (where == one_of_row ? 0 : 20));
        CHECK_MESSAGE(wrong == 0, "D " << dim << " where " << where << " path "
                                       << static_cast<int>(b.path) << ": " << wrong);
      }
    }
  }
}

TEST_CASE_TEMPLATE("NaN in every key of a row's only list shows", T, bfloat16, float) {
  // Rows without a near field, whose list meets nothing but NaN; and rows that see nothing at all.
  attention_shape const s{1, 2, 1, 130, 130, 64};
  auto t = testing::random_tensors<T>(s, 5);
  for (T& x : t.k) x = static_cast<T>(__builtin_nanf(""));
  attention_plan<> const plan(s, chunk{130});
  testing::fill_plan(plan, testing::plan_kind::first_token, 2);
  for (int i = 0; i < 130; i += 2) plan.view().rows_at(0, 1)[i] = row_class::lazy;
  auto const twin = to_device(plan);
  for (backend::cuda const b : paths) {
    auto const fast = attention{b}.with(chunk{130});
    device_call<T> x(t);
    workspace<device> const memory(fast.template workspace_bytes<T>(s));
    REQUIRE(fast.run(x.q.view, x.k.view, x.v.view, twin, x.out.view, x.lse, memory).ok());
    check_cuda(cudaDeviceSynchronize());
    outcome<T> const got(x);
    int wrong = 0;
    for (int row = 0; row < 260; ++row) {
      auto const r = static_cast<std::size_t>(row);
      bool const sees = plan.view().rows_at(0, row / 130)[row % 130] == row_class::active;
      float const first = static_cast<float>(got.out[r * 64]);
      wrong += sees ? !std::isnan(got.lse[r]) : !(got.lse[r] == empty_lse());
      wrong += sees ? !std::isnan(first) : first != 0.f;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE_TEMPLATE("rows whose shares are NaN look far, and tell nothing of the keys", T, bfloat16,
                   omnisparse::half, float) {
  for (int const dim : {64, 128}) {
    attention_shape const s{1, 4, 2, 150, 300, dim};
    auto t = testing::random_tensors<T>(s, 5, 1.5f);
    auto const spoil = [&](std::vector<T>& x, int row) {
      x[static_cast<std::size_t>(row * dim + 7)] = static_cast<T>(__builtin_nanf(""));
    };
    for (int const row : {20, 63, 127, 149, 150 + 149, 300 + 64}) spoil(t.q, row);  // probes, too
    // Near to each row whose window begins where their block does: which other rows meet the
    // block's mean, is a matter of its border.
    for (int const key : {270, 300 + 280, 300 + 284}) spoil(t.k, key);
    for (auto const limit : {mask::causal, mask::full}) {
      auto const slow = sparse(attention{backend::reference{}}, limit);
      auto const wanted = slow.make_plan(s);
      REQUIRE(slow.plan(t.q_view(), t.k_view(), wanted, workspace<>{}).ok());
      for (backend::cuda const b : paths) {
        auto const fast = sparse(attention{b}, limit);
        device_call<T> call(t);
        poisoned const memory(fast.template workspace_bytes<T>(s));
        auto const made = fast.make_plan(s);
        status const planned =
            fast.plan(call.q.view, call.k.view, made, {memory.data(), memory.bytes()});
        REQUIRE_MESSAGE(planned.ok(), std::string(planned.message));
        attention_plan<host> const copy(s, {made.view().chunk_rows});
        REQUIRE(copy_plan(copy.view(), made.view()).ok());
        check_cuda(cudaDeviceSynchronize());
        check_same_plan(copy, wanted, {.rows = 300, .entries = 200, .recall = 1e-3f},
                        "D " + std::to_string(dim) + " path " +
                            std::to_string(static_cast<int>(b.path)) +
                            (limit == mask::full ? " full" : " causal"));
      }
    }
  }
}

TEST_CASE_TEMPLATE("averages of the largest values are finite", T, bfloat16, omnisparse::half,
                   float) {
  float const most = std::is_same_v<T, omnisparse::half> ? 65504.f
                     : std::is_same_v<T, bfloat16>       ? 3.3895e38f
                                                         : 3.4e38f;
  for (attention_shape const s :
       {attention_shape{1, 4, 2, 200, 3000, 64}, attention_shape{1, 4, 2, 200, 3000, 128},
        attention_shape{1, 4, 2, 100, 700, 256}, attention_shape{1, 4, 1, 1, 3000, 80}}) {
    for (float const sharpness : {0.f, 1.f, 20.f}) {  // all keys alike, some, one
      auto t = testing::random_tensors<T>(s, 5, sharpness);
      for (std::size_t n = 0; n < t.v.size(); ++n) {
        t.v[n] = static_cast<T>(n % 3 == 0 ? -most : most);
      }
      // Keys of one value in column 1: the average is that value.
      for (std::size_t n = 1; n < t.v.size(); n += static_cast<std::size_t>(s.dim)) {
        t.v[n] = static_cast<T>(most);
      }
      attention_plan<> const plan(s, chunk{64});
      testing::fill_plan(plan, testing::plan_kind::random, 2);
      auto const twin = to_device(plan);
      for (backend::cuda const b : paths) {
        auto const fast = attention{b}.with(near_field{300, 4}).with(chunk{64});
        auto const check = [&](device_call<T> const& x, char const* what) {
          check_cuda(cudaDeviceSynchronize());
          int infinite = 0, wrong = 0;
          auto const out = x.out.download();
          for (std::size_t n = 0; n < out.size(); ++n) {
            float const value = static_cast<float>(out[n]);
            infinite += !std::isfinite(value);
            if (n % static_cast<std::size_t>(s.dim) == 1) wrong += !(value >= most * 0.99f);
          }
          for (float const lse : x.lses()) infinite += !std::isfinite(lse);
          CHECK_MESSAGE(infinite == 0, what << " D " << s.dim << " path "
                                            << static_cast<int>(b.path) << ": " << infinite);
          CHECK_MESSAGE(wrong == 0, what << " D " << s.dim << ": " << wrong);
        };
        workspace<device> const memory(fast.template workspace_bytes<T>(s));
        device_call<T> x(t);
        REQUIRE(fast.run(x.q.view, x.k.view, x.v.view, twin, x.out.view, x.lse, memory).ok());
        check(x, "by a plan");
        device_call<T> y(t);
        REQUIRE(fast(y.q.view, y.k.view, y.v.view, y.out.view, y.lse, memory).ok());
        check(y, "dense");
      }
    }
  }
}

TEST_CASE_TEMPLATE("scales at both ends give finite outputs", T, bfloat16, omnisparse::half,
                   float) {
  attention_shape const s{1, 4, 2, 150, 400, 64};
  auto const t = testing::random_tensors<T>(s, 5);
  for (backend::cuda const b : paths) {
    for (double const scale : {5e-324, 1e-300, 1e-38, 1e-20, 1e4}) {
      auto const fast = sparse(attention{b}, mask::causal).with(softmax_scale{scale});
      device_call<T> x(t);
      workspace<device> const memory(fast.template workspace_bytes<T>(s));
      REQUIRE(fast(x.q.view, x.k.view, x.v.view, x.out.view, x.lse, memory).ok());
      check_cuda(cudaDeviceSynchronize());
      outcome<T> const got(x);
      int infinite = 0;
      for (T const value : got.out) infinite += !std::isfinite(static_cast<float>(value));
      for (float const lse : got.lse) infinite += !std::isfinite(lse);
      CHECK_MESSAGE(infinite == 0, "scale " << scale << ": " << infinite);
    }
  }
}
