#include <omnisparse/backend/cuda/collective/key_walk.hpp>
#include <omnisparse/testing/random.hpp>

#include <doctest/doctest.h>

#include <vector>

using namespace omnisparse;
using collective::key_stretch;
using collective::key_walk;

namespace {

// Every key that a row sees is read once by its part, no tile reads beyond its part's end, and a
// plain tile is seen whole by every row.
void check_walk(key_walk const& walk, std::vector<key_range> const (&rows)[2], int keys,
                int anchor = 4096) {
  std::vector<int> reads[2];
  for (int part = 0; part < 2; ++part) reads[part].assign(4096, 0);
  for (int n = 0; n < walk.tiles(); ++n) {
    int const part = walk.part_of(n), first = walk.first_key(n, keys);
    REQUIRE(first > -keys);
    REQUIRE(first + keys <= smaller(walk.part[part].end, anchor));
    for (int j = larger(first, 0); j < first + keys; ++j) {
      ++reads[part][static_cast<std::size_t>(j)];
    }
    if (walk.is_masked(n)) continue;
    for (key_range const& row : rows[part]) {
      REQUIRE(row.begin <= first);
      REQUIRE(first + keys <= row.end);
    }
  }
  for (int part = 0; part < 2; ++part) {
    for (key_range const& row : rows[part]) {
      for (int j = row.begin; j < row.end; ++j) {
        REQUIRE(reads[part][static_cast<std::size_t>(j)] == 1);
      }
    }
  }
}

}  // namespace

TEST_CASE("a walk reads each visible key once, and masks what it must") {
  testing::generator g(11);
  for (int round = 0; round < 300; ++round) {
    int const kv = g.between(1, 900), count = g.between(1, 150);
    int const start = g.between(-200, kv - 1);
    near_field const near{g.between(0, 3) == 0 ? 0 : g.between(0, 600), g.between(0, 200)};
    mask const limit = g.below(2) == 0 ? mask::causal : mask::full;
    std::vector<key_range> rows[2], seen[2];
    for (int i = 0; i < count; ++i) {
      int const position = smaller(start + i, kv - 1);
      rows[0].push_back(near.window_of(position, kv, limit));
      rows[1].push_back(near.sinks_of(position, kv, limit));
      seen[0].push_back(near_field::visible(position, kv, limit));
    }
    for (int const keys : {16, 128}) {
      key_walk walk;
      for (int part = 0; part < 2; ++part) {
        walk.part[part] = key_stretch::of(rows[part].front(), rows[part].back(), keys);
      }
      check_walk(walk, rows, keys);
      int const ends = seen[0].back().end;
      for (int const anchor : {ends, ends + 1, ends + 300}) {
        check_walk({{key_stretch::of(seen[0].front(), seen[0].back(), keys, anchor), {}}}, seen,
                   keys, anchor);
      }
    }
  }
}

TEST_CASE("with one anchor a row's tiles and their order do not depend on its neighbours") {
  for (int const own : {1, 100, 116, 300, 700}) {
    std::vector<int> alone;
    for (int const low : {0, 1, 90, 300, 700}) {
      for (int const high : {1, 100, 300, 384, 385, 1000}) {
        if (low > own || high < own) continue;
        auto const s = key_stretch::of({0, low}, {0, high}, 128, 1011);
        std::vector<int> tiles;
        for (int n = 0; n < s.tiles; ++n) {
          if (s.first_key(n, 128) < own) tiles.push_back(s.first_key(n, 128));
        }
        if (alone.empty()) alone = tiles;
        CHECK(tiles == alone);
      }
    }
  }
}

TEST_CASE("nor do they where rows end at the anchor and begin apart") {
  // The part of a list right of the rows' windows, whose left end is masked.
  int const anchor = 1011;
  for (int const own : {0, 100, 116, 300, 640}) {
    std::vector<int> alone;
    for (int const low : {0, 1, 90, 100, 300, 640}) {
      for (int const high : {0, 100, 116, 300, 384, 640, 1000}) {
        if (low > own || high < own) continue;
        auto const s = key_stretch::of({low, anchor}, {high, anchor}, 128, anchor);
        std::vector<int> tiles;
        for (int n = 0; n < s.tiles; ++n) {
          if (s.first_key(n, 128) + 128 > own) tiles.push_back(s.first_key(n, 128));
        }
        if (alone.empty()) alone = tiles;
        CHECK(tiles == alone);
      }
    }
  }
}

TEST_CASE("a walk reads no more tiles than it must") {
  // A window of 1024 over 128 rows: 1151 keys.
  auto const window = key_stretch::of({1000, 2024}, {1127, 2151}, 128);
  CHECK(window.tiles == 9);
  CHECK(window.right == 1);
  CHECK(window.left == 1);
  // The diagonal of causal attention masks one tile of a whole row tile.
  auto const diagonal = key_stretch::of({0, 129}, {0, 256}, 128);
  CHECK(diagonal.tiles == 2);
  CHECK(diagonal.right == 1);
  CHECK(diagonal.left == 0);
  CHECK(key_stretch::of({0, 0}, {0, 0}, 128).tiles == 0);
  CHECK(key_stretch::of({7, 7}, {9, 9}, 128).tiles == 0);
}
