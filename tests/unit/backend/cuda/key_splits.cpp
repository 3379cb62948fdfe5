#include <omnisparse/backend/cuda/collective/key_splits.hpp>

#include <doctest/doctest.h>

using namespace omnisparse;
using collective::key_splits;

TEST_CASE("splits cover all keys once, in whole tiles from the right") {
  for (int const end : {0, 1, 127, 128, 129, 1000, 2048, 100003}) {
    for (int count = 1; count <= key_splits::limit; ++count) {
      int right = end;
      for (int n = 0; n < count; ++n) {
        key_range const part = key_splits::part(end, n, count, 128);
        CHECK(part.end == right);
        CHECK(part.begin <= part.end);
        if (n + 1 < count) CHECK(part.size() % 128 == 0);
        right = part.begin;
      }
      CHECK(right == 0);
    }
  }
}

TEST_CASE("few tiles are split often, many never, and never beyond the room") {
  key_splits const s{nullptr, nullptr, 800};
  CHECK(s.count(0) == 1);
  CHECK(s.count(1) == key_splits::limit);
  CHECK(s.count(300) == 2);
  CHECK(s.count(401) == 1);
  for (int tiles = 1; tiles < 2000; ++tiles) {
    CHECK((s.count(tiles) == 1 || s.count(tiles) * tiles <= 800));
  }
  CHECK(key_splits{}.count(5) == 1);

  // Few keys are split as often as it is worth, or as it takes to fill the GPU.
  key_splits const few{nullptr, nullptr, 800, 4, 120};
  CHECK(few.count(1) == key_splits::limit);
  CHECK(few.count(10) == 12);
  CHECK(few.count(40) == 4);
  CHECK(few.count(150) == 4);
  CHECK(few.count(300) == 2);
  CHECK(few.count(900) == 1);
  CHECK(key_splits{nullptr, nullptr, 800, 0, 0}.count(5) == 1);
}
