#include <omnisparse/detail/far_blocks.hpp>

#include <doctest/doctest.h>

#include <vector>

using namespace omnisparse;

TEST_CASE("the pyramid covers each far key exactly once") {
  for (mask const limit : {mask::causal, mask::full}) {
    for (int keys : {1, 63, 64, 65, 300, 1025}) {
      for (int window : {0, 1, 40, 64, 2000}) {
        for (int sinks : {0, 3, 70}) {
          for (far_estimate const estimate : {far_estimate{.block = 16, .per_level = 1},
                                              far_estimate{.block = 64, .per_level = 4},
                                              far_estimate{.block = 1, .per_level = 3}}) {
            for (int position = 0; position < keys; position += 1 + keys / 13) {
              near_field const near{window, sinks};
              std::vector<int> covered(static_cast<std::size_t>(keys), 0);
              int blocks = 0;
              detail::for_each_far_block(near.window_of(position, keys, limit), sinks, keys,
                                         estimate, limit,
                                         [&](int level, int index, key_range clip) {
                                           int const span = estimate.block << 2 * level;
                                           CHECK(clip.begin >= index * span);
                                           CHECK(clip.end <= (index + 1) * span);
                                           for (int j = clip.begin; j < clip.end && j < keys; ++j) {
                                             ++covered[static_cast<std::size_t>(j)];
                                           }
                                           ++blocks;
                                         });
              for (int j = 0; j < keys; ++j) {
                bool const far = near_field::visible(position, keys, limit).contains(j) &&
                                 !near.contains(j, position, keys, limit);
                int const times = covered[static_cast<std::size_t>(j)];
                if (far) REQUIRE(times == 1);
                if (!far && j >= sinks) REQUIRE(times == 0);
                REQUIRE(times <= 1);
              }
              CHECK(blocks <=
                    2 * (estimate.per_level + 4) * detail::pyramid_levels(keys, estimate.block));
            }
          }
        }
      }
    }
  }
}
