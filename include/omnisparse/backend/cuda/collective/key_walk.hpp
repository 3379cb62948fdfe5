/// @file
/// In which order a row tile reads its keys, and which key tiles need a mask.
#pragma once

#include <omnisparse/core/near_field.hpp>

namespace omnisparse::collective {

/// The key tiles over one stretch of keys. They are laid from its right end, so that none reads a
/// key beyond it; the leftmost may begin before key 0, where the copy engine delivers zeros.
struct key_stretch {
  int end = 0;
  int tiles = 0;
  int right = 0;  ///< tiles at the right end that some row does not see whole
  int left = 0;   ///< the same at the left end

  /// Tiles in the middle, which every row sees whole.
  OMNISPARSE_HD constexpr int plain() const noexcept { return tiles - right - left; }

  /// The stretch that rows see whose ranges ascend from `first` to `last` at both ends.
  OMNISPARSE_HD static constexpr key_stretch of(key_range first, key_range last,
                                                int keys) noexcept {
    return of(first, last, keys, last.end);
  }
  /// The same with tiles whole numbers of tiles left of `anchor` >= last.end: where all rows share
  /// the anchor, a row's tiles do not depend on which rows stand beside it.
  OMNISPARSE_HD static constexpr key_stretch of(key_range first, key_range last, int keys,
                                                int anchor) noexcept {
    if ((first.size() == 0 && last.size() == 0) || last.end <= first.begin) return {};
    key_stretch s;
    s.end = anchor - (anchor - last.end) / keys * keys;
    s.tiles = ceil_div(s.end - first.begin, keys);
    s.left = smaller(s.tiles - larger(0, s.end - last.begin) / keys, s.tiles);
    s.right = smaller(ceil_div(s.end - first.end, keys), s.tiles - s.left);
    return s;
  }

  /// The first key of tile `n`: from the right end, whichever tiles are masked, so that no tile
  /// changes places where other rows see more or less.
  OMNISPARSE_HD constexpr int first_key(int n, int keys) const noexcept {
    return end - keys * (n + 1);
  }
  OMNISPARSE_HD constexpr bool is_masked(int n) const noexcept {
    return n < right || n >= tiles - left;
  }
};

/// All key tiles of a row tile, one part after the other: which of them a row sees, and in which
/// order, does not depend on what other rows see of the other part.
struct key_walk {
  key_stretch part[2] = {};

  OMNISPARSE_HD constexpr int tiles() const noexcept { return part[0].tiles + part[1].tiles; }

  /// Which part tile `n` of the walk belongs to.
  OMNISPARSE_HD constexpr int part_of(int n) const noexcept { return n >= part[0].tiles; }
  /// The first key of tile `n`; may be negative.
  OMNISPARSE_HD constexpr int first_key(int n, int keys) const noexcept {
    return part_of(n) == 0 ? part[0].first_key(n, keys)
                           : part[1].first_key(n - part[0].tiles, keys);
  }
  /// Must some row's scores of tile `n` be masked?
  OMNISPARSE_HD constexpr bool is_masked(int n) const noexcept {
    return part_of(n) == 0 ? part[0].is_masked(n) : part[1].is_masked(n - part[0].tiles);
  }
};

}  // namespace omnisparse::collective
