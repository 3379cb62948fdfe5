/// @file
/// Few row tiles leave most of a GPU idle: their keys are split among blocks.
#pragma once

#include <omnisparse/core/near_field.hpp>

namespace omnisparse::collective {

/// Partial results of row tiles whose keys are split. How often follows from the number of tiles
/// and the room alone, so that every kernel that asks agrees; more tiles, fewer splits.
struct key_splits {
  float* out = nullptr;             ///< [slots, tile rows, D]; slot = split * tiles + tile
  float* lse = nullptr;             ///< [slots, tile rows]
  int slots = 0;                    ///< partial tiles there is room for; 0: nothing is split
  static constexpr int limit = 32;  ///< most splits of a tile
  int worth = limit;                ///< splits of a tile beyond which each has too few keys,
  int busy = 0;                     ///< but for this many partial tiles, which fill the GPU

  OMNISPARSE_HD constexpr int count(int tiles) const noexcept {
    if (tiles <= 0) return 1;
    return clamped(slots / tiles, 1, smaller(limit, larger(worth, busy / tiles)));
  }

  /// Split `n` of `count` of the keys [0, end), in whole key tiles from the right.
  OMNISPARSE_HD static constexpr key_range part(int end, int n, int count, int keys) noexcept {
    int const tiles = ceil_div(end, keys);
    auto const before = [&](int split) {
      return static_cast<int>(static_cast<long long>(tiles) * split / count) * keys;
    };
    return {larger(end - before(n + 1), 0), end - before(n)};
  }
};

}  // namespace omnisparse::collective
