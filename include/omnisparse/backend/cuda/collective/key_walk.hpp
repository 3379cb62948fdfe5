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

  OMNISPARSE_HD constexpr int masked() const noexcept { return right + left; }
  OMNISPARSE_HD constexpr int plain() const noexcept { return tiles - right - left; }

  /// The stretch that rows see whose ranges ascend from `first` to `last` at both ends.
  OMNISPARSE_HD static constexpr key_stretch of(key_range first, key_range last,
                                                int keys) noexcept {
    if ((first.size() == 0 && last.size() == 0) || last.end <= first.begin) return {};
    key_stretch s;
    s.end = last.end;
    s.tiles = ceil_div(last.end - first.begin, keys);
    s.right = smaller(ceil_div(last.end - first.end, keys), s.tiles);
    s.left = smaller(s.tiles - larger(0, last.end - last.begin) / keys, s.tiles - s.right);
    return s;
  }
};

/// All key tiles of a row tile: first those that need a mask, then the plain ones.
struct key_walk {
  key_stretch part[2] = {};

  OMNISPARSE_HD constexpr int masked() const noexcept {
    return part[0].masked() + part[1].masked();
  }
  OMNISPARSE_HD constexpr int plain() const noexcept { return part[0].plain() + part[1].plain(); }
  OMNISPARSE_HD constexpr int tiles() const noexcept { return part[0].tiles + part[1].tiles; }

  /// Which part tile `n` of the walk belongs to.
  OMNISPARSE_HD constexpr int part_of(int n) const noexcept {
    int const m = masked();
    return n < m ? n >= part[0].masked() : n - m >= part[0].plain();
  }
  /// The first key of tile `n`; may be negative.
  OMNISPARSE_HD constexpr int first_key(int n, int keys) const noexcept {
    int const m = masked();
    bool const plain = n >= m;
    int const which = part_of(n);
    key_stretch const& s = part[which];
    int t = plain ? n - m : n;
    if (which == 1) t -= plain ? part[0].plain() : part[0].masked();
    // Tiles count from the right: masked ones at the right end, then those at the left end.
    int const from_right = plain ? s.right + t : t < s.right ? t : t + s.plain();
    return s.end - keys * (from_right + 1);
  }
};

}  // namespace omnisparse::collective
