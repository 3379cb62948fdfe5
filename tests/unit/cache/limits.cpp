#include "support/refusal.hpp"

#include <limits>
#include <vector>

using namespace testing_support;

namespace {

using code = status_code;
using cache_type = kv_cache<backend::cpu, float>;
int const lowest = std::numeric_limits<int>::min(), highest = std::numeric_limits<int>::max();

// A cache of one sequence that holds `tokens` tokens, and a decode step on it.
struct step {
  cache_type cache{{.kv_heads = 2, .dim = 16, .max_tokens = 64, .page_tokens = 4}};
  std::vector<float> x = std::vector<float>(2 * 9 * 16, 0.5f), q = std::vector<float>(4 * 16, 1.f);
  testing::result<float> r{{1, 4, 2, 1, 9, 16}};
  workspace<> memory;
  int sequence = 0;

  explicit step(int tokens = 9) {
    REQUIRE(cache.add(sequence).ok());
    tensor_view<float const, host, 3> const of(x.data(), {2, tokens, 16});
    REQUIRE(cache.append(sequence, of, of, segment::visual).ok());
    memory = workspace<>(attention{backend::cpu{}}.decode_workspace_bytes(cache, 1, 4));
  }
  tensor_view<float const> q_view() const { return {q.data(), {1, 4, 1, 16}}; }
  ~step() {
    for (float const value : r.out) CHECK(is_nan(value));
    for (float const value : r.lse) CHECK(is_nan(value));
  }
};

}  // namespace

TEST_CASE("max_tokens is the limit that it says, text and visual together") {
  for (int const page : {1, 4, 64}) {
    cache_type cache({.kv_heads = 2, .dim = 8, .max_tokens = 5, .page_tokens = page});
    int s = 0;
    REQUIRE(cache.add(s).ok());
    std::vector<float> const x(2 * 6 * 8, 1.f);
    auto const of = [&](int tokens) {
      return tensor_view<float const, host, 3>(x.data(), {2, tokens, 8});
    };
    check_refusal(cache.append(s, of(6), of(6), segment::text), code::out_of_pages, "max_tokens");
    REQUIRE(cache.append(s, of(3), of(3), segment::text).ok());
    check_refusal(cache.append(s, of(3), of(3), segment::visual), code::out_of_pages, "max_tokens");
    CHECK(cache.appended(s) == 3);
    REQUIRE(cache.append(s, of(2), of(2), segment::visual).ok());
    check_refusal(cache.append(s, of(1), of(1), segment::text), code::out_of_pages, "max_tokens");
    // Only what is stored counts, for each KV head.
    auto const visual = [](int) { return segment::visual; };
    CHECK(cache.append_if(s, of(4), of(4), visual, [](int, int) { return false; }).ok());
    REQUIRE(cache.keep_if(s, [](int g, int position) { return g == 0 || position == 3; }).ok());
    CHECK(cache.append_if(s, of(1), of(1), visual, [](int g, int) { return g == 1; }).ok());
    check_refusal(cache.append(s, of(1), of(1), segment::text), code::out_of_pages, "max_tokens");
    CHECK(cache.stored(s, 1, segment::visual) == 2);
  }
}

TEST_CASE("cache options that cannot be counted are refused by a sentence") {
  auto const bad = [](kv_cache_options const& o, char const* word) {
    check_refusal(check_cache(o), code::invalid_option, word);
    CHECK_FALSE(cache_type(o));
    CHECK(cache_type(o).pages() == 0);
  };
  bad({.sequences = 8192, .kv_heads = 8, .dim = 1, .max_tokens = 1 << 20, .page_tokens = 16},
      "2^31 - 1 pages");
  bad({.sequences = 32768, .dim = 1, .max_tokens = 65536, .page_tokens = 1}, "2^31 - 1 pages");
  bad({.sequences = highest}, "2^28 sequences");
  bad({.sequences = 65536, .kv_heads = 65536}, "2^28 sequences");
  bad({.max_tokens = highest}, "2^30 max_tokens");
  bad({.page_tokens = highest}, "2^20 page_tokens");
  bad({.dim = highest}, "65536");
  bad({.dim = 65536, .page_tokens = 1 << 20}, "2^30 elements");
  for (int const few : {0, -1, lowest}) {
    bad({.sequences = few}, "at least one");
    bad({.kv_heads = few}, "at least one");
    bad({.dim = few}, "at least one");
    bad({.max_tokens = few}, "at least one");
    bad({.page_tokens = few}, "at least one");
    bad({.sink_keys = few}, "at least one");
  }
  bad({.pages = lowest}, "pages >= 0");
  CHECK(check_cache({.sequences = 8192, .kv_heads = 8, .dim = 1, .max_tokens = 1 << 20, .pages = 9})
            .ok());
  page_pool none(-1), small(2);
  CHECK_FALSE(none);
  CHECK(none.take() == -1);
  CHECK(small.take() == 0);
  small.give_back(0);
  small.give_back(1);
  small.give_back(-1);
  small.give_back(2);
  CHECK(small.free_pages() == 2);
}

TEST_CASE("appending checks what it is given") {
  step now;
  auto const append = [&](auto const& k, auto const& v) {
    return now.cache.append(now.sequence, k, v, segment::text);
  };
  using view = tensor_view<float const, host, 3>;
  view const good(now.x.data(), {2, 1, 16});
  check_refusal(append(view(now.x.data(), {2, -3, 16}), view(now.x.data(), {2, -3, 16})),
                code::invalid_shape, "kv_heads");
  check_refusal(append(view(nullptr, {2, 1, 16}), good), code::invalid_shape, "kv_heads");
  check_refusal(append(good, view(now.x.data(), {2, 1, 16}, {16, 16, 2})), code::invalid_shape,
                "contiguous");
  check_refusal(append(good, view(now.x.data(), {2, 1, 16}, {std::int64_t{1} << 60, 16, 1})),
                code::invalid_view, "2^56");
  auto const& ref = now.cache.ref();
  check_refusal(append(view(ref.values, {2, 1, 16}), good), code::invalid_view, "own memory");
  check_refusal(append(good, view(ref.keys, {2, 1, 16})), code::invalid_view, "own memory");
  CHECK(now.cache.appended(now.sequence) == 9);
  // Positions end where an int does.
  ref.appended[now.sequence] = highest;
  check_refusal(append(good, good), code::out_of_pages, "2^31 - 1 positions");
  ref.appended[now.sequence] = 9;
}

TEST_CASE("slimming checks k and v before it moves their pointers") {
  step now;
  attention_shape const s{2, 4, 2, 9, 9, 16};
  attention_plan<> const plan(s);
  auto const attend = attention{backend::cpu{}};
  auto const slim = [&](auto const& k, auto const& v) {
    return attend.slim(k, v, plan, now.cache, now.sequence, {}, 1);
  };
  auto const t = testing::random_tensors<float>(s, 1);
  using view = tensor_view<float const>;
  check_refusal(slim(view(nullptr, {2, 2, 9, 16}), t.v_view()), code::invalid_view, "memory");
  check_refusal(slim(t.k_view(), view(nullptr, {2, 2, 9, 16})), code::invalid_view, "memory");
  view const strided(t.v.data(), {2, 2, 9, 16}, {16, 16, 16, 3});
  check_refusal(slim(t.k_view(), strided), code::invalid_view, "contiguous");
  view const own(now.cache.ref().values, {2, 2, 9, 16}, {0, 0, 16, 1});
  check_refusal(slim(t.k_view(), own), code::invalid_view, "own memory");
  CHECK(now.cache.appended(now.sequence) == 9);
}

TEST_CASE("decoding keeps its outputs apart from all else") {
  char const* const shared = "elements of its own";
  auto const attend = attention{backend::cpu{}};
  step now;
  auto const& ref = now.cache.ref();
  auto const decode = [&](tensor_view<float> const& out, lse_view<float> const& lse,
                          auto const& ws) {
    return attend.decode(now.q_view(), now.cache, out, lse, ws);
  };
  tensor_view<float> const out = now.r.out_view;
  check_refusal(decode({now.q.data(), {1, 4, 1, 16}}, now.r.lses, now.memory), code::invalid_view,
                shared);
  check_refusal(decode({ref.values, {1, 4, 1, 16}}, now.r.lses, now.memory), code::invalid_view,
                shared);
  check_refusal(decode(out, {ref.keys, {1, 4, 1}}, now.memory), code::invalid_view, shared);
  check_refusal(decode(out, {now.r.out.data() + 63, {1, 4, 1}}, now.memory), code::invalid_view,
                shared);
  check_refusal(decode(out, {now.r.lse.data(), {1, 4, 1}, {0, 0, 1}}, now.memory),
                code::invalid_view, shared);
  check_refusal(decode({now.r.out.data(), {1, 4, 1, 16}, {64, 15, 16, 1}}, {}, now.memory),
                code::invalid_view, shared);
  std::size_t const room = 16;  // too little, but that is looked at later
  check_refusal(decode(out, now.r.lses, workspace_view<>{now.q.data() + 60, room}),
                code::invalid_view, "workspace shares");
  check_refusal(decode(out, now.r.lses, workspace_view<>{ref.tables, room}), code::invalid_view,
                "workspace lies in the cache");
  tensor_view<int const, host, 1> const sequences(reinterpret_cast<int*>(now.r.out.data()), {1});
  check_refusal(attend.decode(now.q_view(), now.cache, out, now.memory, sequences),
                code::invalid_view, shared);
  CHECK(now.q[0] == 1.f);
  CHECK(ref.values[0] == 0.5f);
}

TEST_CASE("decoding checks extents, options and what it is given beside q") {
  auto const attend = attention{backend::cpu{}};
  step now;
  auto const decode = [&](int batch, int heads, tensor_view<int const, host, 1> const& sequences,
                          lse_view<float> const& lse = {}) {
    tensor_view<float const> const q(now.q.data(), {batch, heads, 1, 16}, {0, 0, 0, 1});
    tensor_view<float> const out(now.r.out.data(), {batch, heads, 1, 16});
    return attend.decode(q, now.cache, out, lse, now.memory, sequences);
  };
  check_refusal(decode(-1, -4, {}), code::invalid_shape, "batch >= 0");
  check_refusal(decode(1, -4, {}), code::invalid_shape, "batch >= 0");
  check_refusal(decode(1, lowest, {}), code::invalid_shape, "batch >= 0");
  check_refusal(decode(highest, 4, {}), code::invalid_shape, "2^28 rows");
  check_refusal(decode(1, highest - 1, {}), code::invalid_shape, "2^28 rows");
  check_refusal(decode(1, 3, {}), code::invalid_shape, "multiple");
  int const zero = 0;
  check_refusal(decode(1, 4, {&zero, {0}}), code::invalid_shape, "sequences");
  check_refusal(decode(1, 4, {nullptr, {1}}), code::invalid_view, "no memory");
  check_refusal(decode(1, 4, {}, {nullptr, {1, 4, 1}}), code::invalid_view, "no memory");
  check_refusal(decode(1, 4, {}, {nullptr, {1, 4, 2}}), code::invalid_shape, "lse");
  for (int const batch : {-1, lowest, highest, 1 << 28}) {
    CHECK(attend.decode_workspace_bytes(now.cache, batch, 4) == 0);
  }
  CHECK(attend.decode_workspace_bytes(now.cache, 1, 3) == 0);
  CHECK(attend.decode_workspace_bytes(now.cache, 1, lowest) == 0);
  CHECK(attend.decode_workspace_bytes(now.cache, 1 << 20, 64) > 0);
  CHECK(decode(0, 4, {}).ok());
  // A fetcher that observes nothing has no sink, however many keys the cache's sink pools.
  cache_type pooled({.kv_heads = 2, .dim = 16, .max_tokens = 64, .sink_keys = 4});
  int n = 0;
  REQUIRE(pooled.add(n).ok());
  std::vector<float> out(64);
  workspace<> memory(attend.decode_workspace_bytes(pooled, 1, 4));
  tensor_view<float> const outs(out.data(), {1, 4, 1, 16});
  CHECK(attend.decode(now.q_view(), pooled, outs, memory).ok());
  check_refusal(attend.with(slim::head_fetch{}).decode(now.q_view(), pooled, outs, memory),
                code::invalid_option, "sink_keys");
}

TEST_CASE("a segment that is not text counts as visual, in every stage") {
  attention_shape const s{1, 2, 2, 9, 9, 16};
  auto const t = testing::random_tensors<float>(s, 1);
  std::vector<segment> odd(9, static_cast<segment>(9)), visual(9, segment::visual);
  odd[4] = visual[4] = segment::text;
  auto const attend = attention{backend::cpu{}}
                          .with(near_field{.window = 2})
                          .with(budget::fixed{.count = 2})
                          .with(slim::kept_tokens{});
  workspace<> memory(attend.workspace_bytes(s));
  std::string plans[2];
  for (int way = 0; way < 2; ++way) {
    inputs<> in;
    in.segments = {(way == 0 ? odd : visual).data(), {1, 9}};
    attention_plan<> const plan = attend.make_plan(s);
    REQUIRE(attend.plan(t.q_view(), t.k_view(), plan, memory, in).ok());
    plans[way] = to_bytes(plan);
    cache_type cache({.kv_heads = 2, .dim = 16, .max_tokens = 64});
    int n = 0;
    REQUIRE(cache.add(n).ok());
    REQUIRE(attend.slim(t.k_view(), t.v_view(), plan, cache, n, in).ok());
    CHECK(cache.stored(n, 1, segment::text) == 1);
    CHECK(cache.stored(n, 1, static_cast<segment>(9)) == cache.stored(n, 1, segment::visual));
    CHECK(cache.stored(n, 1, segment::visual) < 8);
  }
  CHECK(plans[0] == plans[1]);
}
