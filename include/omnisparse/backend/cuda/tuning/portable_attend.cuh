/// @file
/// Tile sizes of the portable attend kernel.
#pragma once

#include <omnisparse/core/dtype.hpp>

namespace omnisparse::tuning {

/// How the portable kernel cuts its work. All of it fits 99 KB of shared memory, which every GPU
/// from compute capability 8.0 on has; where there is twice as much, two blocks share a
/// multiprocessor, and one copies while the other multiplies.
struct portable_attend {
  int rows = 64;  ///< of a row tile
  int keys = 64;  ///< of a key tile

  static constexpr int warps = 4;
  static constexpr int threads = warps * 32;
  friend constexpr bool operator==(portable_attend const&, portable_attend const&) = default;
};

/// The tile sizes for elements of `bytes` bytes and head dimension `dim`.
constexpr portable_attend portable_attend_for(int bytes, int dim) noexcept {
  if (bytes == 4) return {64, dim <= 128 ? 32 : 16};
  return {dim <= 128 ? 128 : 64, dim <= 64 ? 128 : 64};
}

}  // namespace omnisparse::tuning
