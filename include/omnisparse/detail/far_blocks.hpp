/// @file
/// Which blocks of keys stand in for what is beyond a row's near field: the pyramid.
#pragma once

#include <omnisparse/core/math.hpp>
#include <omnisparse/core/near_field.hpp>
#include <omnisparse/core/observation.hpp>

namespace omnisparse::detail {

// Four blocks of a level make one of the next.
inline constexpr int pyramid_fan = 4;

// Levels that a pyramid over `kv_tokens` keys can have, at least 1.
OMNISPARSE_HD constexpr int pyramid_levels(int kv_tokens, int block) noexcept {
  int levels = 1;
  for (int blocks = ceil_div(kv_tokens, block); blocks > 1; blocks = ceil_div(blocks, pyramid_fan))
    ++levels;
  return levels;
}

// Calls use(level, index, clip) for each block of the row's far field. Block `index` of `level`
// covers keys [index, index + 1) * block * 4^level; `clip` is the part of it that is far: the whole
// block, but for the lowest-level blocks that the window cuts. Nearest first. `use` may be a
// function of the host, of the device or of both: nvcc is told not to ask.
#if defined(__CUDACC__)
#  pragma nv_exec_check_disable
#endif
template <class Use>
OMNISPARSE_HD constexpr void for_each_far_block(key_range window, int sinks, int kv_tokens,
                                                far_estimate const& estimate, mask limit,
                                                Use&& use) {
  int const size = estimate.block;
  if (window.begin > sinks) {
    int end = window.begin / size;
    if (window.begin % size != 0) use(0, end, key_range{end * size, window.begin});
    for (int level = 0, span = size; end > 0; ++level, span *= pyramid_fan) {
      int const begin = larger(0, (end - estimate.per_level) / pyramid_fan * pyramid_fan);
      for (int n = end - 1; n >= begin; --n) use(level, n, key_range{n * span, (n + 1) * span});
      end = begin / pyramid_fan;
    }
  }
  if (limit == mask::full && window.end < kv_tokens) {
    int begin = ceil_div(larger(window.end, sinks), size);
    if (window.end % size != 0)
      use(0, begin - 1, key_range{window.end, smaller(begin * size, kv_tokens)});
    int blocks = ceil_div(kv_tokens, size);
    for (int level = 0, span = size; begin < blocks; ++level, span *= pyramid_fan) {
      int const end = smaller(blocks, round_up(begin + estimate.per_level, pyramid_fan));
      for (int n = begin; n < end; ++n) use(level, n, key_range{n * span, (n + 1) * span});
      if (end == blocks) break;
      begin = end / pyramid_fan;
      blocks = ceil_div(blocks, pyramid_fan);
    }
  }
}

}  // namespace omnisparse::detail
