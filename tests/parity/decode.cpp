#include "support/run.hpp"

using namespace testing_support;

namespace {

// A cache with visual tokens, then text, some visual ones dropped; both backends against a mask in
// double over what is stored.
template <class T>
void check_decode(int heads, int kv_heads, int dim, int tokens, float threshold, bool any, std::uint64_t seed) {
  testing::generator g(seed);
  attention_shape const s{1, heads, kv_heads, 1, tokens, dim};
  auto const t = testing::random_tensors<T>(s, seed, 1.5f);
  kv_cache_options const options{.sequences = 2, .kv_heads = kv_heads, .dim = dim, .max_tokens = tokens + 8, .page_tokens = 16};
  kv_cache<backend::cpu, T> fast(options);
  kv_cache<backend::reference, T> slow(options);
  int unused = 0, sequence = 0;
  REQUIRE(fast.add(unused).ok());
  REQUIRE(slow.add(unused).ok());
  REQUIRE(fast.add(sequence).ok());
  REQUIRE(slow.add(sequence).ok());
  auto const part = [&](auto const& x, int first, int last) {
    return tensor_view<T const, host, 3>(x.at(0, 0, first), {kv_heads, last - first, dim}, {x.stride(1), x.stride(2), 1});
  };
  int const visual = tokens * 3 / 4;
  auto const kind_of = [&](int j) { return j < visual ? segment::visual : segment::text; };
  for (auto const& [first, last] : {std::pair{0, visual}, std::pair{visual, tokens}}) {
    REQUIRE(fast.append(sequence, part(t.k_view(), first, last), part(t.v_view(), first, last), kind_of(first)).ok());
    REQUIRE(slow.append(sequence, part(t.k_view(), first, last), part(t.v_view(), first, last), kind_of(first)).ok());
  }
  auto const keeps = [](int head, int j) { return (j * 7 + head) % 3 != 0; };
  REQUIRE(fast.keep_if(sequence, keeps).ok());
  REQUIRE(slow.keep_if(sequence, keeps).ok());
  near_field const near{tokens / 2, 2};
  auto const policy = slim::head_fetch{.threshold = threshold, .any = any};
  auto const a = attention{backend::cpu{}}.with(near).with(policy);
  auto const b = attention{backend::reference{}}.with(near).with(policy);
  testing::result<T> x(s), y(s);
  tensor_view<int const, host, 1> const ids(&sequence, {1});
  std::vector<unsigned char> memory(a.decode_workspace_bytes(fast, 1, heads), 0xff);
  REQUIRE(a.decode(t.q_view(), fast, x.out_view, x.lses, workspace_view<>{memory.data(), memory.size()}, ids).ok());
  REQUIRE(b.decode(t.q_view(), slow, y.out_view, y.lses, workspace<>{}, ids).ok());
  CHECK(testing::within_rule<T>(testing::compare(x.out, y.out)));
  CHECK(testing::compare(x.lse, y.lse).largest < 1e-4);

  std::vector<double> oracle_out;
  for (int h = 0; h < heads; ++h) {
    int const group = heads / kv_heads, kv = h / group;
    auto const fetches = [&](int head) {  // the classifier, written out: mean of all keys but the first
      double on_first = 0, on_mean = 0;
      for (int d = 0; d < dim; ++d) {
        double const q = static_cast<double>(t.q_view()(0, head, 0, d));
        on_first += q * static_cast<double>(t.k_view()(0, kv, 0, d));
        for (int j = 1; j < tokens; ++j) on_mean += q * static_cast<double>(t.k_view()(0, kv, j, d)) / (tokens - 1);
      }
      double const root = std::sqrt(static_cast<double>(dim));
      return tokens > 1 && 1 / (1 + std::exp((on_first - on_mean) / root)) > static_cast<double>(threshold);
    };
    bool reads = fetches(h);
    for (int other = kv * group; any && other < (kv + 1) * group; ++other) reads = reads || fetches(other);
    oracle::matrix mask = oracle::matrix::Zero(1, tokens), out;
    for (int j = 0; j < tokens; ++j) {
      bool const stored = kind_of(j) == segment::text || keeps(kv, j);
      bool const is_near = j < 2 || tokens - 1 - j < tokens / 2;
      mask(0, j) = stored && (kind_of(j) == segment::text || is_near || reads) ? 1 : 0;
    }
    Eigen::VectorXd lse;
    oracle::attend<T>(t.q_view(), t.k_view(), t.v_view(), 0, h, kv, mask, out, lse);
    for (int d = 0; d < dim; ++d) oracle_out.push_back(out(0, d));
  }
  auto const d = testing::compare(x.out, oracle_out);
  CHECK_MESSAGE(testing::within_rule<T>(d), "tokens " << tokens << " dim " << dim << " largest " << d.largest);
}

}  // namespace

TEST_CASE_TEMPLATE("decode equals the oracles on a slimmed cache, fetched or not", T, float, double, bfloat16, half) {
  std::uint64_t seed = 3;
  for (int tokens : {1, 15, 16, 17, 130, 700}) {
    for (float const threshold : {0.f, 0.5f, 1.f}) {
      for (bool const any : {true, false}) {
        check_decode<T>(6, 2, 16, tokens, threshold, any, ++seed);
        check_decode<T>(7, 1, 40, tokens, threshold, any, ++seed);
        check_decode<T>(3, 3, 8, tokens, threshold, any, ++seed);
      }
    }
  }
  check_decode<T>(4, 1, 128, 300, 0.5f, false, 1);
}

TEST_CASE("decode is the last row of a prefill") {
  attention_shape const s{1, 6, 2, 90, 90, 32};
  auto const t = testing::random_tensors<float>(s, 5);
  auto const attend = attention{backend::cpu{}};
  testing::result<float> prefill(s), step({1, 6, 2, 1, 90, 32});
  workspace<> memory(attend.workspace_bytes(s));
  REQUIRE(attend(t.q_view(), t.k_view(), t.v_view(), prefill.out_view, prefill.lses, memory).ok());
  kv_cache<backend::cpu, float> cache({.sequences = 1, .kv_heads = 2, .dim = 32, .max_tokens = 90});
  int sequence = 0;
  REQUIRE(cache.add(sequence).ok());
  auto const plan = attend.make_plan(s);
  REQUIRE(attend.slim(t.k_view(), t.v_view(), plan, cache, sequence).ok());
  tensor_view<float const> const q(t.q_view().at(0, 0, 89), {1, 6, 1, 32}, {6 * 90 * 32, 90 * 32, 32, 1});
  workspace<> small(attend.decode_workspace_bytes(cache, 1, 6));
  REQUIRE(attend.decode(q, cache, step.out_view, step.lses, small).ok());
  for (int h = 0; h < 6; ++h) {
    for (int d = 0; d < 32; ++d) {
      CHECK(step.out_view(0, h, 0, d) == doctest::Approx(prefill.out_view(0, h, 89, d)).epsilon(1e-5));
    }
    CHECK(step.lses(0, h, 0) == doctest::Approx(prefill.lses(0, h, 89)).epsilon(1e-5));
  }
  // Bits do not depend on threads.
  for (int threads : {1, 2, 5}) {
    auto const other = attention{backend::cpu{threads}};
    testing::result<float> again({1, 6, 2, 1, 90, 32});
    workspace<> own(other.decode_workspace_bytes(cache, 1, 6));
    REQUIRE(other.decode(q, cache, again.out_view, again.lses, own).ok());
    CHECK(again.out == step.out);
  }
}
