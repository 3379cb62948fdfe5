#include <omnisparse/backend/cpu/attend.hpp>
#include <omnisparse/testing/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

using namespace omnisparse;

TEST_CASE("a list cursor answers as a search from the start does") {
  testing::generator g(4);
  for (int const gap : {1, 2, 9}) {
    std::vector<int> list;
    for (int j = g.below(3); list.size() < 60; j += g.between(1, gap)) list.push_back(j);
    cpu::list_cursor cursor{list.data(), static_cast<int>(list.size())};
    for (int key = 0; key < 60 * gap + 5; key += g.below(2 * gap)) {
      auto const at = std::lower_bound(list.begin(), list.end(), key) - list.begin();
      CHECK(cursor.below(key) == at);
    }
  }
  cpu::list_cursor empty;
  CHECK(empty.below(7) == 0);
}
