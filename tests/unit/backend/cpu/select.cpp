#include <omnisparse/backend/cpu/select.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

using namespace omnisparse;
using namespace omnisparse::cpu;

TEST_CASE("ranks ascend by score descending, then by index ascending; NaN is last") {
  float const inf = std::numeric_limits<float>::infinity();
  float const scores[] = {inf, 2.f, 1.f, 1e-40f, 0.f, -1e-40f, -3.f, -inf};
  for (int n = 0; n + 1 < 8; ++n) CHECK(rank_key(scores[n], 9) < rank_key(scores[n + 1], 1));
  CHECK(rank_key(1.f, 3) < rank_key(1.f, 4));
  CHECK(rank_key(0.f, 4) < rank_key(-0.f, 5));
  CHECK(rank_key(-0.f, 4) < rank_key(0.f, 5));
  CHECK(rank_key(-1e30f, 9) < rank_key(std::nanf(""), 0));
  CHECK(rank_key(-std::nanf(""), 2) < rank_key(std::nanf(""), 3));
  CHECK(ranked_index(rank_key(0.25f, 123456)) == 123456);
}

TEST_CASE("concentration by each statistic, in plain numbers") {
  float const flat[] = {1, 1, 1, 1}, steep[] = {0, 4, 0, 0}, none[] = {0, 0, 0, 0};
  float scratch[40];
  auto const key = [](int n) { return n; };
  auto const of = [&](float const* mass, flatness_by by) {
    return concentration(mass, key, 4, by, scratch);
  };
  CHECK(of(flat, flatness_by::simpson) == doctest::Approx(0.25));
  CHECK(of(steep, flatness_by::simpson) == doctest::Approx(1.0));
  CHECK(of(flat, flatness_by::entropy) == doctest::Approx(-std::log(4.0)));
  CHECK(of(steep, flatness_by::entropy) == doctest::Approx(0.0));
  CHECK(of(flat, flatness_by::top_share) == doctest::Approx(0.25));
  CHECK_FALSE(is_finite(of(none, flatness_by::simpson)));
  float slope[40];  // the largest twentieth: 39 and 38
  for (int n = 0; n < 40; ++n) slope[n] = static_cast<float>(n);
  CHECK(concentration(slope, key, 40, flatness_by::top_share, scratch) ==
        doctest::Approx(77 / 780.0));
}

TEST_CASE("reach counts the best-ranked keys until they hold enough") {
  float mass[300];
  std::uint64_t rank[300];
  double sorted[300];
  for (int const distinct : {300, 7, 1}) {
    for (int n = 0; n < 300; ++n) {
      mass[n] = static_cast<float>(1 + n * 97 % distinct);
      sorted[n] = double{mass[n]};
    }
    std::sort(sorted, sorted + 300, std::greater<>{});
    for (int count : {0, 1, 16, 17, 300}) {
      double sum = 0.5, all = 0.5;
      for (int n = 0; n < 300; ++n) all += double{mass[n]};
      for (int reach = 0; reach <= 300 && count == 300; ++reach) {
        for (int n = 0; n < 300; ++n) rank[n] = rank_key(mass[n], n);
        CHECK(reach_of(rank, 300, mass, 0.5, sum) == reach);
        for (int n = 0; n < reach; ++n) {  // the best ones stand before it
          CHECK(double{mass[ranked_index(rank[n])]} >= sorted[reach - 1]);
        }
        if (reach < 300) sum += sorted[reach];
      }
      for (int n = 0; n < count; ++n) rank[n] = rank_key(mass[n], n);
      CHECK(reach_of(rank, count, mass, 0.5, 2 * all) == count);
      CHECK(reach_of(rank, count, mass, 0.5, 0.5) == 0);
    }
  }
}
