#include "support/run.hpp"

#include <cstring>

using namespace testing_support;

namespace {

// A cache with visual tokens, then text, some visual ones dropped; both backends against a mask in
// double over what is stored.
template <class T>
void check_decode(int heads, int kv_heads, int dim, int tokens, float threshold, bool any,
                  std::uint64_t seed) {
  testing::generator g(seed);
  attention_shape const s{1, heads, kv_heads, 1, tokens, dim};
  auto const t = testing::random_tensors<T>(s, seed, 1.5f);
  kv_cache_options const options{.sequences = 2,
                                 .kv_heads = kv_heads,
                                 .dim = dim,
                                 .max_tokens = tokens + 8,
                                 .page_tokens = 16};
  kv_cache<backend::cpu, T> fast(options);
  kv_cache<backend::reference, T> slow(options);
  int unused = 0, sequence = 0;
  REQUIRE(fast.add(unused).ok());
  REQUIRE(slow.add(unused).ok());
  REQUIRE(fast.add(sequence).ok());
  REQUIRE(slow.add(sequence).ok());
  auto const part = [&](auto const& x, int first, int last) {
    return tensor_view<T const, host, 3>(x.at(0, 0, first), {kv_heads, last - first, dim},
                                         {x.stride(1), x.stride(2), 1});
  };
  int const visual = tokens * 3 / 4;
  auto const kind_of = [&](int j) { return j < visual ? segment::visual : segment::text; };
  for (auto const& [first, last] : {std::pair{0, visual}, std::pair{visual, tokens}}) {
    REQUIRE(fast.append(sequence, part(t.k_view(), first, last), part(t.v_view(), first, last),
                        kind_of(first))
                .ok());
    REQUIRE(slow.append(sequence, part(t.k_view(), first, last), part(t.v_view(), first, last),
                        kind_of(first))
                .ok());
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
  REQUIRE(a.decode(t.q_view(), fast, x.out_view, x.lses,
                   workspace_view<>{memory.data(), memory.size()}, ids)
              .ok());
  REQUIRE(b.decode(t.q_view(), slow, y.out_view, y.lses, workspace<>{}, ids).ok());
  CHECK(testing::within_rule<T>(testing::compare(x.out, y.out)));
  CHECK(testing::compare(x.lse, y.lse).largest < 1e-4);

  std::vector<double> oracle_out;
  for (int h = 0; h < heads; ++h) {
    int const group = heads / kv_heads, kv = h / group;
    auto const fetches =
        [&](int head) {  // the classifier, written out: mean of all keys but the first
          double on_first = 0, on_mean = 0;
          for (int d = 0; d < dim; ++d) {
            double const q = static_cast<double>(t.q_view()(0, head, 0, d));
            on_first += q * static_cast<double>(t.k_view()(0, kv, 0, d));
            for (int j = 1; j < tokens; ++j)
              on_mean += q * static_cast<double>(t.k_view()(0, kv, j, d)) / (tokens - 1);
          }
          double const root = std::sqrt(static_cast<double>(dim));
          return tokens > 1 &&
                 1 / (1 + std::exp((on_first - on_mean) / root)) > static_cast<double>(threshold);
        };
    bool reads = fetches(h);
    for (int other = kv * group; any && other < (kv + 1) * group; ++other)
      reads = reads || fetches(other);
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
  CHECK_MESSAGE(testing::within_rule<T>(d),
                "tokens " << tokens << " dim " << dim << " largest " << d.largest);
}

}  // namespace

TEST_CASE_TEMPLATE("decode equals the oracles on a slimmed cache, fetched or not", T, float, double,
                   bfloat16, half) {
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
  for (int const dim : {1, 3, 5, 20, 33, 72, 80, 100}) {
    check_decode<T>(6, 2, dim, 75, 0.5f, false, ++seed);
    check_decode<T>(9, 1, dim, 40, 0.5f, true, ++seed);
  }
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
  tensor_view<float const> const q(t.q_view().at(0, 0, 89), {1, 6, 1, 32},
                                   {6 * 90 * 32, 90 * 32, 32, 1});
  workspace<> small(attend.decode_workspace_bytes(cache, 1, 6));
  REQUIRE(attend.decode(q, cache, step.out_view, step.lses, small).ok());
  for (int h = 0; h < 6; ++h) {
    for (int d = 0; d < 32; ++d) {
      CHECK(step.out_view(0, h, 0, d) ==
            doctest::Approx(prefill.out_view(0, h, 89, d)).epsilon(1e-5));
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

namespace {

// Several sequences of different lengths in one batch, out of order; every slot that holds no token
// is NaN. The fast backend against the reference, and its bits over numbers of threads.
template <class T>
void check_ragged(int group, int kv_heads, int dim, int page_tokens, std::uint64_t seed) {
  testing::generator g(seed);
  std::vector<int> const lengths = {0, 1, 210, page_tokens, 2 * page_tokens + 1};
  int const batch = static_cast<int>(lengths.size()), heads = group * kv_heads;
  kv_cache_options const options{.sequences = batch,
                                 .kv_heads = kv_heads,
                                 .dim = dim,
                                 .max_tokens = 420,
                                 .page_tokens = page_tokens};
  kv_cache<backend::cpu, T> fast(options);
  kv_cache<backend::reference, T> slow(options);
  T const nan = static_cast<T>(static_cast<accumulator_t<T>>(__builtin_nanf("")));
  auto const poison = [&](auto const& cache) {
    std::ptrdiff_t const size = std::ptrdiff_t{cache.pages()} * page_tokens * dim;
    std::ptrdiff_t const slack = static_cast<std::ptrdiff_t>(kv_cache_slack / sizeof(T));
    std::vector<T> keys(cache.ref().keys, cache.ref().keys + size),
        values(cache.ref().values, cache.ref().values + size);
    std::fill_n(cache.ref().keys, size + slack, nan);
    std::fill_n(cache.ref().values, size + slack, nan);
    for (int s = 0; s < batch; ++s) {
      for (std::int64_t lane = cache.ref().lane(s, 0, segment::text);
           lane < cache.ref().lane(s + 1, 0, segment::text); ++lane) {
        for (int n = 0; n < cache.ref().stored[lane]; ++n) {
          int const page = cache.ref().page(lane, n / page_tokens), slot = n % page_tokens;
          for (int d = 0; d < dim; ++d) {
            std::ptrdiff_t const key =
                cache.ref().keys_at(page, slot) + d * page_tokens - cache.ref().keys;
            std::ptrdiff_t const value = cache.ref().values_at(page, slot) + d - cache.ref().values;
            cache.ref().keys[key] = keys[static_cast<std::size_t>(key)];
            cache.ref().values[value] = values[static_cast<std::size_t>(value)];
          }
        }
      }
    }
  };
  std::vector<int> ids(lengths.size());
  for (std::size_t n = 0; n < lengths.size(); ++n) {
    auto const t =
        testing::random_tensors<T>({1, heads, kv_heads, 1, std::max(1, lengths[n]), dim}, seed + n);
    REQUIRE(fast.add(ids[n]).ok());
    REQUIRE(slow.add(ids[n]).ok());
    // One by one and in blocks, visual and text by turns.
    for (int first = 0; first < lengths[n];) {
      int const last = std::min(lengths[n], first + g.between(1, 2 * page_tokens));
      segment const kind = g.below(2) == 0 ? segment::text : segment::visual;
      auto const part = [&](auto const& x) {
        return tensor_view<T const, host, 3>(x.at(0, 0, first), {kv_heads, last - first, dim},
                                             {x.stride(1), x.stride(2), 1});
      };
      REQUIRE(fast.append(ids[n], part(t.k_view()), part(t.v_view()), kind).ok());
      REQUIRE(slow.append(ids[n], part(t.k_view()), part(t.v_view()), kind).ok());
      first = last;
    }
  }
  poison(fast);
  poison(slow);
  std::reverse(ids.begin(), ids.end());
  tensor_view<int const, host, 1> const sequences(ids.data(), {batch});
  attention_shape const s{batch, heads, kv_heads, 1, 1, dim};
  auto const t = testing::random_tensors<T>(s, seed, 2.f);
  auto const near = near_field{40, 3};
  auto const policy = slim::head_fetch{.threshold = 0.5f, .any = false};
  testing::result<T> y(s);
  REQUIRE(attention{backend::reference{}}
              .with(near)
              .with(policy)
              .decode(t.q_view(), slow, y.out_view, y.lses, workspace<>{}, sequences)
              .ok());
  std::vector<T> bits;
  for (int threads : {1, 2, 3}) {
    auto const attend = attention{backend::cpu{threads}}.with(near).with(policy);
    testing::result<T> x(s);
    std::vector<unsigned char> memory(attend.decode_workspace_bytes(fast, batch, heads), 0xff);
    REQUIRE(attend
                .decode(t.q_view(), fast, x.out_view, x.lses,
                        workspace_view<>{memory.data(), memory.size()}, sequences)
                .ok());
    auto const d = testing::compare(x.out, y.out);
    CHECK_MESSAGE(testing::within_rule<T>(d), "group " << group << " dim " << dim << " page "
                                                       << page_tokens << " largest " << d.largest);
    CHECK(testing::compare(x.lse, y.lse).largest < 1e-4);
    if (threads == 1) bits = x.out;
    CHECK(std::memcmp(bits.data(), x.out.data(), sizeof(T) * bits.size()) == 0);
  }
}

}  // namespace

TEST_CASE_TEMPLATE("ragged sequences, every group and page length, garbage in idle slots", T, float,
                   double, bfloat16, half) {
  for (int group = 1; group <= 16; ++group)
    check_ragged<T>(group, 1 + group % 2, 24, 64, 100 + static_cast<std::uint64_t>(group));
  for (int const page_tokens : {1, 3, 16, 31, 100, 200}) {
    for (int const dim : {8, 64, 72, 5, 33})
      check_ragged<T>(3, 2, dim, page_tokens, static_cast<std::uint64_t>(page_tokens + dim));
  }
}

TEST_CASE("a token that a head does not read may hold anything") {
  // Two heads of one group on one page: head 0 reads far tokens, head 1 does not.
  float const inf = std::numeric_limits<float>::infinity();
  kv_cache<backend::cpu, float> cache({.sequences = 1, .kv_heads = 1, .dim = 8, .max_tokens = 64});
  int sequence = 0;
  REQUIRE(cache.add(sequence).ok());
  std::vector<float> k(20 * 8, 0.f), v(20 * 8, 1.f), q(2 * 8, 0.f);
  k[0] = 1, q[0] = -9, q[8] = 9;  // the sink's logit is low for head 0, high for head 1
  for (int d = 0; d < 8; ++d) v[10 * 8 + static_cast<std::size_t>(d)] = inf;
  tensor_view<float const, host, 3> const ks(k.data(), {1, 20, 8}), vs(v.data(), {1, 20, 8});
  REQUIRE(cache.append(sequence, ks, vs, segment::visual).ok());
  auto const attend = attention{backend::cpu{}}
                          .with(near_field{4, 1})
                          .with(slim::head_fetch{.threshold = 0.5f, .any = false});
  testing::result<float> x({1, 2, 1, 1, 20, 8});
  workspace<> memory(attend.decode_workspace_bytes(cache, 1, 2));
  tensor_view<float const> const qs(q.data(), {1, 2, 1, 8});
  REQUIRE(attend.decode(qs, cache, x.out_view, x.lses, memory).ok());
  CHECK(x.out_view(0, 0, 0, 3) == inf);
  CHECK(x.out_view(0, 1, 0, 3) == doctest::Approx(1));
}
