#include <omnisparse/attention.hpp>
#include <omnisparse/testing/plans.hpp>

#include <doctest/doctest.h>

#include <map>
#include <set>
#include <vector>

using namespace omnisparse;

namespace {

using cache_type = kv_cache<backend::cpu, float>;

struct model_token {
  float value;
  segment kind;
};
// What a cache should hold: sequence, KV head, position.
using model_type = std::map<int, std::vector<std::map<int, model_token>>>;

void check_equal(cache_type const& cache, model_type const& model) {
  auto const& ref = cache.ref();
  std::set<int> pages;
  for (auto const& [sequence, heads] : model) {
    for (int g = 0; g < ref.kv_heads; ++g) {
      std::size_t found = 0;
      for (segment const kind : {segment::text, segment::visual}) {
        auto const lane = ref.lane(sequence, g, kind);
        int before = -1;
        for (int n = 0; n < ref.stored[lane]; ++n, ++found) {
          int const page = ref.page(lane, n / ref.page_tokens), slot = n % ref.page_tokens;
          int const position = *ref.positions_at(page, slot);
          if (slot == 0) REQUIRE(pages.insert(page).second);
          REQUIRE(position > before);
          before = position;
          auto const& tokens = heads[static_cast<std::size_t>(g)];
          REQUIRE(tokens.count(position) == 1);
          REQUIRE(tokens.at(position).kind == kind);
          for (int d = 0; d < ref.dim; ++d) {
            float const value = tokens.at(position).value + static_cast<float>(d);
            REQUIRE(ref.keys_at(page, slot)[d * ref.page_tokens] == value);
            REQUIRE(ref.values_at(page, slot)[d] == -value);
          }
        }
      }
      REQUIRE(found == heads[static_cast<std::size_t>(g)].size());
    }
  }
  REQUIRE(static_cast<int>(pages.size()) == cache.pages() - cache.free_pages());
  REQUIRE(cache.bytes_in_use() == pages.size() * cache.page_bytes());
}

}  // namespace

TEST_CASE("a cache under random use equals a simple model of it") {
  testing::generator g(7);
  cache_type cache(
      {.sequences = 3, .kv_heads = 2, .dim = 8, .max_tokens = 60, .pages = 40, .page_tokens = 4});
  REQUIRE(cache);
  model_type model;
  std::map<int, int> appended;
  int refused = 0;
  for (int step = 0; step < 3000; ++step) {
    int const what = g.below(10);
    if (what == 0) {
      int sequence = -1;
      status const s = cache.add(sequence);
      CHECK(s.ok() == (model.size() < 3));
      if (s.ok()) {
        REQUIRE(model.count(sequence) == 0);
        model[sequence].resize(2);
        appended[sequence] = 0;
      }
    } else if (what == 1 && g.below(3) == 0) {
      int const sequence = g.below(4);
      CHECK(cache.finish(sequence).ok() == (model.count(sequence) == 1));
      model.erase(sequence);
    } else if (what == 2) {
      int const sequence = g.below(3), every = g.between(1, 4);
      auto const keeps = [every](int head, int position) { return (position + head) % every == 0; };
      CHECK(cache.keep_if(sequence, keeps).ok() == (model.count(sequence) == 1));
      if (model.count(sequence) == 0) continue;
      for (int head = 0; head < 2; ++head) {
        std::erase_if(model[sequence][static_cast<std::size_t>(head)], [&](auto const& t) {
          return t.second.kind == segment::visual && !keeps(head, t.first);
        });
      }
    } else {
      int const sequence = g.below(3), tokens = g.between(0, 9);
      segment const kind = g.below(2) == 0 ? segment::text : segment::visual;
      std::vector<float> k, v;
      for (int n = 0; n < 2 * tokens * 8; ++n) {
        k.push_back(static_cast<float>((step * 20 + n / 8) * 8 + n % 8));
        v.push_back(-k.back());
      }
      tensor_view const ks(k.data(), {2, tokens, 8}), vs(v.data(), {2, tokens, 8});
      int const before = cache.free_pages();
      status const s = cache.append(sequence, ks, vs, kind);
      if (model.count(sequence) == 0) {
        CHECK(s.code == status_code::unknown_sequence);
      } else if (!s.ok()) {
        CHECK(s.code == status_code::out_of_pages);
        CHECK(cache.free_pages() == before);
        ++refused;
      } else {
        for (int head = 0; head < 2; ++head) {
          for (int n = 0; n < tokens; ++n) {
            model[sequence][static_cast<std::size_t>(head)][appended[sequence] + n] = {
                k[static_cast<std::size_t>((head * tokens + n) * 8)], kind};
          }
        }
        appended[sequence] += tokens;
        CHECK(cache.appended(sequence) == appended[sequence]);
      }
    }
    check_equal(cache, model);
  }
  CHECK(refused > 20);
}

TEST_CASE("slimming by a plan: trimming equals building, and pages return") {
  attention_shape const s{2, 4, 2, 50, 50, 8};
  auto const t = testing::random_tensors<float>(s, 3);
  std::vector<segment> kinds(100);
  for (std::size_t n = 0; n < kinds.size(); ++n)
    kinds[n] = n % 7 == 0 ? segment::text : segment::visual;
  inputs<> in;
  in.segments = tensor_view<segment const, host, 2>(kinds.data(), {2, 50});
  auto const attend = attention{backend::cpu{}}
                          .with(near_field{.window = 6, .sinks = 2})
                          .with(chunk{20})
                          .with(slim::kept_tokens{});
  attention_plan<> const plan = attend.make_plan(s);
  testing::fill_plan(plan, testing::plan_kind::random, 9);
  kv_cache_options const options{
      .sequences = 1, .kv_heads = 2, .dim = 8, .max_tokens = 64, .page_tokens = 4};
  cache_type built(options), trimmed(options);
  int a = 0, b = 0;
  REQUIRE(built.add(a).ok());
  REQUIRE(trimmed.add(b).ok());
  auto const of = [&](auto const& x) {
    return tensor_view<float const, host, 3>(x.at(1), {2, 50, 8}, {x.stride(1), x.stride(2), 1});
  };
  REQUIRE(trimmed
              .append_if(
                  b, of(t.k_view()), of(t.v_view()),
                  [&](int j) { return kinds[static_cast<std::size_t>(50 + j)]; },
                  [](int, int) { return true; })
              .ok());
  CHECK(trimmed.bytes_in_use() >= trimmed.full_bytes());
  REQUIRE(attend.slim(plan, trimmed, b, in, 1).ok());
  REQUIRE(attend.slim(t.k_view(), t.v_view(), plan, built, a, in, 1).ok());
  CHECK(built.bytes_in_use() == trimmed.bytes_in_use());
  CHECK(built.bytes_in_use() < built.full_bytes());
  for (int g = 0; g < 2; ++g) {
    std::set<int> wanted;
    for (int j = 0; j < 50; ++j) {
      bool kept = j < 2 || j > 43 || kinds[static_cast<std::size_t>(50 + j)] == segment::text;
      for (int n = 0; n < plan.view().kept_counts[plan.view().list(1, 2, g)]; ++n) {
        kept = kept || plan.view().kept_at(1, 2, g)[n] == j;
      }
      if (kept) wanted.insert(j);
    }
    for (cache_type const* cache : {&built, &trimmed}) {
      std::set<int> stored;
      for (segment const kind : {segment::text, segment::visual}) {
        auto const lane = cache->ref().lane(0, g, kind);
        for (int n = 0; n < cache->ref().stored[lane]; ++n) {
          stored.insert(*cache->ref().positions_at(cache->ref().page(lane, n / 4), n % 4));
        }
      }
      CHECK(stored == wanted);
    }
  }
}

TEST_CASE(
    "the last page is given out, then nothing; a number that is given out again starts empty") {
  cache_type cache(
      {.sequences = 1, .kv_heads = 2, .dim = 8, .max_tokens = 12, .pages = 6, .page_tokens = 4});
  std::vector<float> const x(2 * 13 * 8, 1.f);
  auto const of = [&](int tokens) {
    return tensor_view<float const, host, 3>(x.data(), {2, tokens, 8});
  };
  for (int again = 0; again < 2; ++again) {
    int s = -1;
    REQUIRE(cache.add(s).ok());
    for (int part = 0; part < 2; ++part) CHECK(cache.ref().key_sum_at(s, 1, part)[7] == 0);
    CHECK(cache.append(s, of(13), of(13), segment::text).code == status_code::out_of_pages);
    CHECK(cache.free_pages() == 6);
    CHECK(cache.full_bytes() == 0);
    REQUIRE(cache.append(s, of(5), of(5), segment::text).ok());
    REQUIRE(cache.append(s, of(7), of(7), segment::text).ok());
    CHECK(cache.free_pages() == 0);
    CHECK(cache.append(s, of(1), of(1), segment::text).code == status_code::out_of_pages);
    CHECK(cache.ref().key_sum_at(s, 1, 0)[7] == 1);
    CHECK(cache.ref().key_sum_at(s, 1, 1)[7] == 11);
    CHECK(cache.full_bytes() == 6 * cache.page_bytes());
    REQUIRE(cache
                .append_if(
                    s, of(9), of(9), [](int) { return segment::visual; },
                    [](int, int) { return false; })
                .ok());
    CHECK(cache.appended(s) == 21);
    CHECK(cache.ref().key_sum_at(s, 1, 1)[7] == 20);  // what is dropped at once still counts
    CHECK(cache.page_bytes() == 4 * (8 * 4 + 8 * 4 + 4));
    REQUIRE(cache.finish(s).ok());
    CHECK(cache.free_pages() == 6);
  }
}

TEST_CASE("senseless options make no cache; unknown sequences are refused") {
  CHECK_FALSE(cache_type({.sequences = 0}));
  CHECK_FALSE(cache_type({.dim = 0}));
  CHECK_FALSE(cache_type({.page_tokens = 0}));
  cache_type cache({.sequences = 1, .kv_heads = 1, .dim = 8, .max_tokens = 8});
  CHECK(cache.finish(0).code == status_code::unknown_sequence);
  CHECK(cache.finish(-1).code == status_code::unknown_sequence);
  auto const attend = attention{backend::cpu{}};
  std::vector<float> q(8), out(8, 5.f);
  workspace<> memory(attend.decode_workspace_bytes(cache, 1, 1));
  tensor_view const qs(q.data(), {1, 1, 1, 8}), outs(out.data(), {1, 1, 1, 8});
  CHECK(attend.decode(qs, cache, outs, memory).code == status_code::unknown_sequence);
  CHECK(out[0] == 5.f);
  int s = 0;
  REQUIRE(cache.add(s).ok());
  CHECK(attend.decode(qs, cache, outs, workspace_view<>{}).code ==
        status_code::workspace_too_small);
  CHECK(attend.decode(qs, cache, outs, memory).ok());
  CHECK(out[0] == 0.f);  // nothing stored: an empty set
}
