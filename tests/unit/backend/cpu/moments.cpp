#include <omnisparse/backend/cpu/moments.hpp>
#include <omnisparse/backend/cpu/reference_plan.hpp>
#include <omnisparse/testing/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

using namespace omnisparse;
using namespace omnisparse::cpu;

namespace {

// Rows at these positions, in one tile, against the estimate written out in double.
void check(far_estimate const& estimate, near_field const& near, mask limit, int tokens, int dim,
           std::vector<int> const& list, std::vector<int> const& positions,
           softmax_scale scale = {}) {
  int const rows = static_cast<int>(positions.size());
  attention_shape const s{1, 1, 1, rows, tokens, dim};
  auto const t = testing::random_tensors<float>(s, 11);
  attention_call<float, host> call;
  call.shape = s;
  call.q = t.q_view();
  call.k = t.k_view();
  int const blocks = block_moments<float>::blocks(tokens, estimate.block);
  auto const take = [&](auto& arena) {
    struct {
      block_moments<float> moments;
      far_scratch<float> far;
      thread_scratch<float> scratch;
    } m;
    m.moments = block_moments<float>::take(arena, 2, blocks, dim);
    m.far = far_scratch<float>::take(arena, tokens, estimate.block, dim);
    m.scratch = thread_scratch<float>::take(arena, dim);
    return m;
  };
  omnisparse::detail::arena count;
  take(count);
  std::vector<std::byte> memory(count.needed(), std::byte{0xff});
  omnisparse::detail::arena arena(memory.data(), memory.size());
  auto const m = take(arena);
  moment_keys const keys{near.sinks, tokens, list.data(), static_cast<int>(list.size())};
  auto const moments = m.moments.begin(1, blocks, tokens, estimate, dim);
  measure_blocks(call, 0, 0, keys, estimate, 0, ceil_div(tokens, estimate.block), moments);
  pool_blocks(call, 0, 0, keys, estimate, moments);
  std::vector<key_range> windows;
  for (int const position : positions) windows.push_back(near.window_of(position, tokens, limit));
  pack_rows<float>([&](int r) { return call.q.at(0, 0, r); }, rows, dim,
                   score_scale<float>(scale, dim), m.scratch.q);
  estimate_tile(m.scratch.q, rows, windows.data(), near, limit, tokens, dim, estimate, moments,
                tokens, m.scratch.tile.scores, m.far);
  for (int r = 0; r < rows; ++r) {
    double const right = reference_far_lse(
        call.q.at(0, 0, r), call.k, 0, 0, windows[static_cast<std::size_t>(r)], near.sinks, tokens,
        estimate, limit, [&](int j) { return !std::binary_search(list.begin(), list.end(), j); },
        scale);
    CAPTURE(r);
    double const lse = double{m.far.lse[tile_scratch<float>::slot(r)]};
    if (is_empty(right)) CHECK(is_empty(lse));
    else CHECK(lse == doctest::Approx(right).epsilon(2e-5));
  }
}

}  // namespace

TEST_CASE("far log-sum-exps over pyramids of several levels equal the sum written out") {
  int const tokens = 700;
  std::vector<int> positions, every_third;
  for (int r = 0; r < tile_rows; ++r) positions.push_back(r * 7 + r % 3);  // one to many groups
  for (int j = 5; j < tokens; j += 3) every_third.push_back(j);
  for (auto const by : {far_estimate::kind::moments, far_estimate::kind::upper_bound}) {
    for (mask const limit : {mask::causal, mask::full}) {
      for (int const dim : {8, 24, 64, 1, 5, 33}) {
        far_estimate const estimate{.by = by, .block = 16, .per_level = 3};
        check(estimate, {20, 3}, limit, tokens, dim, {}, positions);
        check(estimate, {33, 0}, limit, tokens, dim, every_third, positions);
        check(estimate, {20, 3}, limit, tokens, dim, every_third, positions, {0.02});
        check(estimate, {33, 0}, limit, tokens, dim, {}, positions, {0.7});
      }
    }
  }
  far_estimate const half{.variance_weight = 0.5f, .block = 24, .per_level = 2};
  check(half, {50, 10}, mask::causal, tokens, 40, every_third, {9, 60, 61, 62, 300, 699});
}

TEST_CASE("a list that holds everything leaves nothing, and more blocks than a step are taken") {
  std::vector<int> all;
  for (int j = 0; j < 200; ++j) all.push_back(j);
  far_estimate const estimate{.block = 16, .per_level = 4};
  check(estimate, {10, 2}, mask::causal, 200, 16, all, {20, 100, 199});
  far_estimate const fine{.block = 2, .per_level = 2000};
  check(fine, {4, 1}, mask::causal, 1400, 8, {}, {1390, 1399});
}
