#include <omnisparse/backend/cpu/flash_tile.hpp>
#include <omnisparse/core/workspace.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

using namespace omnisparse;
using namespace omnisparse::cpu;

namespace {

struct problem {
  int rows, dim, keys;
  std::vector<float> q, k, v;  // [rows, dim], [keys, dim] twice
};

problem random_problem(int rows, int dim, int keys, unsigned seed) {
  std::mt19937 bits(seed);
  std::normal_distribution<float> normal;
  problem p{rows, dim, keys, {}, {}, {}};
  for (auto [to, count] : {std::pair{&p.q, rows}, {&p.k, keys}, {&p.v, keys}}) {
    to->resize(static_cast<std::size_t>(count) * static_cast<std::size_t>(dim));
    for (float& x : *to) x = normal(bits);
  }
  return p;
}

float const* row_of(std::vector<float> const& x, int dim, int r) {
  return x.data() + std::ptrdiff_t{r} * dim;
}

// Key ranges of each row, one a run; the runs read the same keys.
struct limits {
  std::vector<int> begin, end;
};

void check(problem const& p, std::vector<limits> const& runs) {
  std::size_t const padded = static_cast<std::size_t>(padded_keys<float>(p.keys));
  std::vector<float> q(packed_rows_size<float>(p.rows, p.dim), std::nanf(""));
  std::vector<float> panels(padded * static_cast<std::size_t>(p.dim), std::nanf(""));
  std::vector<float> values(padded * static_cast<std::size_t>(padded_dim<float>(p.dim)),
                            std::nanf(""));
  pack_rows<float>([&](int r) { return row_of(p.q, p.dim, r); }, p.rows, p.dim,
                   1.44269504f / std::sqrt(static_cast<float>(p.dim)), q.data());
  for (int j = 0; j < p.keys; j += strip<float>) {
    pack_panel<float>([&](int n) { return row_of(p.k, p.dim, j + n); },
                      std::min(strip<float>, p.keys - j), p.dim,
                      panels.data() + std::ptrdiff_t{j} * p.dim);
  }
  bool const finite = pack_values<float>([&](int n) { return row_of(p.v, p.dim, n); }, p.keys,
                                         p.dim, values.data());
  omnisparse::detail::arena count;
  tile_scratch<float>::take(count, p.dim);
  std::vector<std::byte> memory(count.needed(), std::byte{0xff});
  omnisparse::detail::arena arena(memory.data(), memory.size());
  auto const scratch = tile_scratch<float>::take(arena, p.dim);
  std::vector<key_run<float>> all;
  for (auto const& run : runs) {
    all.push_back({panels.data(), values.data(), run.begin.data(), run.end.data(), finite});
  }
  attend_tile(q.data(), p.rows, p.dim, all.data(), static_cast<int>(all.size()), scratch);

  for (int r = 0; r < p.rows; ++r) {
    std::vector<double> sums(static_cast<std::size_t>(p.dim), 0.0);
    double total = 0, high = -std::numeric_limits<double>::infinity();
    for (int const pass : {0, 1}) {
      for (auto const& run : runs) {
        auto const at = static_cast<std::size_t>(r);
        for (int j = run.begin[at]; j < run.end[at]; ++j) {
          double s = 0;
          for (int d = 0; d < p.dim; ++d) {
            s += double{row_of(p.q, p.dim, r)[d]} * double{row_of(p.k, p.dim, j)[d]};
          }
          s /= std::sqrt(p.dim);
          if (pass == 0) {
            high = std::max(high, s);
            continue;
          }
          total += std::exp(s - high);
          for (int d = 0; d < p.dim; ++d) {
            sums[static_cast<std::size_t>(d)] +=
                std::exp(s - high) * double{row_of(p.v, p.dim, j)[d]};
          }
        }
      }
    }
    std::vector<float> out(static_cast<std::size_t>(p.dim));
    store_tile_row(scratch, r, p.dim, out.data());
    CAPTURE(r);
    if (total == 0) {
      CHECK(is_empty(tile_lse(scratch, r)));
    } else {
      CHECK(double{tile_lse(scratch, r)} == doctest::Approx(high + std::log(total)).epsilon(1e-5));
    }
    double worst = 0;
    for (int d = 0; d < p.dim; ++d) {
      double const right = total == 0 ? 0.0 : sums[static_cast<std::size_t>(d)] / total;
      worst = std::max(worst, std::abs(double{out[static_cast<std::size_t>(d)]} - right));
    }
    CHECK(worst < 5e-6);
  }
}

limits everywhere(int rows, int begin, int end) {
  auto const n = static_cast<std::size_t>(rows);
  return {std::vector<int>(n, begin), std::vector<int>(n, end)};
}

}  // namespace

TEST_CASE("a tile equals the softmax written out, for every odd size") {
  for (int const rows : {1, block_rows - 1, block_rows, block_rows + 1, tile_rows}) {
    for (int const dim : {8, 24, 40, 64, 136}) {
      for (int const keys : {1, lanes<float>, strip<float> + 1, tile_keys - 1, tile_keys + 1}) {
        CAPTURE(rows);
        CAPTURE(dim);
        CAPTURE(keys);
        check(random_problem(rows, dim, keys, 7u), {everywhere(rows, 0, keys)});
      }
    }
  }
}

TEST_CASE("limits around panel and tile borders") {
  int const rows = 2 * block_rows + 1, keys = tile_keys + 3 * strip<float>;
  problem const p = random_problem(rows, 16, keys, 3u);
  int const borders[] = {lanes<float>, strip<float>, tile_keys, tile_keys + lanes<float>};
  for (int const border : borders) {
    for (int const begin : {border - 1, border, border + 1}) {
      for (int const length : {0, 1, lanes<float> - 1, lanes<float>, strip<float> + 1}) {
        check(p, {everywhere(rows, begin, begin + length)});
      }
    }
  }
}

TEST_CASE("ragged runs: a staircase, a window, and rows that see nothing first, last or at all") {
  int const rows = tile_rows, keys = 2 * tile_keys;
  problem const p = random_problem(rows, 32, keys, 5u);
  limits stairs = everywhere(rows, 0, 0), window = stairs, holes = stairs;
  for (int r = 0; r < rows; ++r) {
    auto const at = static_cast<std::size_t>(r);
    stairs.end[at] = r * 7;
    window.begin[at] = r * 7;
    window.end[at] = r * 7 + 33;
    holes.begin[at] = tile_keys + 5;
    holes.end[at] = r % 3 == 0 ? keys : 0;
  }
  check(p, {stairs});
  check(p, {window});
  check(p, {holes});
  check(p, {window, stairs});
  check(p, {holes, stairs, everywhere(rows, keys - 1, keys)});
}

TEST_CASE("values that a row does not see do not reach it, whatever they are") {
  int const rows = block_rows + 2, keys = 3 * strip<float>;
  for (float const bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    problem p = random_problem(rows, 24, keys, 9u);
    for (int d = 0; d < p.dim; ++d) {
      p.v[static_cast<std::size_t>(40 * p.dim + d) % p.v.size()] = bad;
      p.k[static_cast<std::size_t>((keys - 1) * p.dim + d)] = bad;
    }
    int const poisoned =
        static_cast<int>(static_cast<std::size_t>(40 * p.dim) % p.v.size()) / p.dim;
    check(p, {everywhere(rows, 0, poisoned), everywhere(rows, poisoned + 1, keys - 1)});
  }
}

TEST_CASE("exp2 is within 2 ulp, exactly 0 far down, and keeps NaN") {
  for (float x = 0.f; x > -130.f; x -= 0.00390626f) {
    float in[lanes<float>], out[lanes<float>];
    std::fill_n(in, lanes<float>, x);
    simd::pstoreu(out, exp2_of<float>(simd::ploadu<packet<float>>(in)));
    if (x < -126.f) {
      CHECK(out[0] <= 1.2e-38f);
    } else {
      double const right = std::exp2(double{x});
      CHECK(std::abs(double{out[0]} - right) < right * 2.4e-7);
    }
  }
  float in[lanes<float>], out[lanes<float>];
  for (float const x : {-1e30f, -std::numeric_limits<float>::infinity()}) {
    std::fill_n(in, lanes<float>, x);
    simd::pstoreu(out, exp2_of<float>(simd::ploadu<packet<float>>(in)));
    CHECK(out[0] == 0.f);
  }
  std::fill_n(in, lanes<float>, std::nanf(""));
  simd::pstoreu(out, exp2_of<float>(simd::ploadu<packet<float>>(in)));
  CHECK(is_nan(out[0]));
}
