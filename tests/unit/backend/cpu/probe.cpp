#include <omnisparse/backend/cpu/probe.hpp>
#include <omnisparse/backend/cpu/reference_plan.hpp>
#include <omnisparse/scorer/column_mass.hpp>
#include <omnisparse/testing/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

using namespace omnisparse;
using namespace omnisparse::cpu;

namespace {

struct policies {
  near_field near;
  mask limit = mask::causal;
  scorer::column_mass scorer;
};

// Probes chunks of `rows` rows, all in one wave, against the sums written out in double.
void check(attention_shape const& s, int rows, policies const& p, int q_tokens, int kv_tokens) {
  auto t = testing::random_tensors<float>(s, 21, 2.f);
  attention_call<float, host> call;
  call.shape = s;
  call.q = t.q_view();
  call.k = t.k_view();
  call.writes = false;
  call.in.q_lengths = {&q_tokens, {1}};
  call.in.kv_lengths = {&kv_tokens, {1}};
  int const threads = 2;
  auto const take = [&](auto& arena) {
    return std::pair{attend_memory<float>::take(arena, s, threads),
                     probe_memory<float>::take(arena, s, rows, threads)};
  };
  omnisparse::detail::arena count;
  take(count);
  std::vector<std::byte> memory(count.needed(), std::byte{0xff});
  omnisparse::detail::arena arena(memory.data(), memory.size());
  auto [m, probes] = take(arena);
  pack_call(call, threads, m.kv);
  sequence_extent const extent = extent_of(s, call.in, 0);
  int const chunks = ceil_div(s.q_tokens, rows);
  REQUIRE(chunks <= probe_memory<float>::wave);
  for (int c = 0; c < chunks; ++c) {
    probes.chunks[c].first = c * rows;
    probes.chunks[c].rows = std::max(0, std::min(rows, extent.q_tokens - c * rows));
  }
  probe_chunks(call, p.scorer, p.near, p.limit, 0, extent, chunks, m, probes);
  for (int c = 0; c < chunks; ++c) {
    for (int g = 0; g < s.kv_heads; ++g) {
      int const list = c * s.kv_heads + g;
      join_parts(probes, list, probes.chunks[c].parts, extent.kv_tokens);
      auto const right =
          reference_observe(call, p, 0, g, extent, probes.chunks[c].first, probes.chunks[c].rows);
      CHECK(probes.chunks[c].probes * s.group() == static_cast<int>(right.total));
      for (int j = 0; j < extent.kv_tokens; ++j) {
        auto const at = static_cast<std::size_t>(j);
        CAPTURE(j);
        CHECK(double{probes.mass_at(list)[j]} == doctest::Approx(right.mass[at]).epsilon(2e-5));
        CHECK(probes.peak_at(list)[j] == doctest::Approx(right.seen[at].peak).epsilon(2e-5));
        CHECK(probes.seen_at(c)[j] == right.seen[at].rows);
      }
    }
  }
}

}  // namespace

TEST_CASE("column sums over several steps of keys, tiles, parts and chunks") {
  attention_shape const s{1, 6, 2, 300, 1200, 16};
  scorer::column_mass const some{.last = 7, .strided = 30};
  for (mask const limit : {mask::causal, mask::full}) {
    check(s, 300, {{40, 3}, limit, some}, 300, 1200);
    check(s, 80, {{0, 0}, limit, some}, 300, 1200);
    check(s, 100, {{600, 5}, limit, some}, 260, 1111);  // a missing tail of rows and keys
    check(s, 90, {{9, 1200}, limit, some}, 300, 100);   // rows before the first key, all keys sinks
  }
  check(s, 300, {{40, 3}, mask::causal, {.last = 0, .strided = 0}}, 300, 1200);  // no probes
  check(s, 300, {{40, 3}, mask::causal, {.last = 300}}, 300, 1200);              // every row
}
