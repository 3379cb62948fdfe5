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

// Calls use(level, first, count, step) for each run of whole blocks in the far field of a row, at
// most one a level and side: blocks first, first + step, ... of `level`, nearest first; step is -1
// left of the window and 1 right of it. `use` may be a function of the host, of the device or of
// both: nvcc is told not to ask.
#if defined(__CUDACC__)
#  pragma nv_exec_check_disable
#endif
template <class Use>
OMNISPARSE_HD constexpr void for_each_far_run(key_range window, int sinks, int kv_tokens,
                                              far_estimate const& estimate, mask limit, Use&& use) {
  int const size = estimate.block;
  if (window.begin > sinks) {
    for (int level = 0, end = window.begin / size; end > 0; ++level) {
      int const begin = larger(0, (end - estimate.per_level) / pyramid_fan * pyramid_fan);
      use(level, end - 1, end - begin, -1);
      end = begin / pyramid_fan;
    }
  }
  if (limit == mask::full && window.end < kv_tokens) {
    int begin = ceil_div(larger(window.end, sinks), size);
    int blocks = ceil_div(kv_tokens, size);
    for (int level = 0; begin < blocks; ++level) {
      int const end = smaller(blocks, round_up(begin + estimate.per_level, pyramid_fan));
      use(level, begin, end - begin, 1);
      if (end == blocks) break;
      begin = end / pyramid_fan;
      blocks = ceil_div(blocks, pyramid_fan);
    }
  }
}

// Calls use(level, index, keys) for each block of a run.
template <class Use>
struct run_blocks {
  int size;  // keys in a block of the lowest level
  Use& use;

#if defined(__CUDACC__)
#  pragma nv_exec_check_disable
#endif
  OMNISPARSE_HD constexpr void operator()(int level, int first, int count, int step) const {
    int span = size;
    for (int n = 0; n < level; ++n) span *= pyramid_fan;
    for (int n = first; count > 0; --count, n += step) use(level, n, {n * span, (n + 1) * span});
  }
};

// Calls use(level, index, clip) for each block of the row's far field. Block `index` of `level`
// covers keys [index, index + 1) * block * 4^level; `clip` is the part of it that is far: the whole
// block, but for the lowest-level blocks that the window cuts, which come first.
#if defined(__CUDACC__)
#  pragma nv_exec_check_disable
#endif
template <class Use>
OMNISPARSE_HD constexpr void for_each_far_block(key_range window, int sinks, int kv_tokens,
                                                far_estimate const& estimate, mask limit,
                                                Use&& use) {
  int const size = estimate.block;
  if (window.begin > sinks && window.begin % size != 0) {
    int const index = window.begin / size;
    use(0, index, key_range{index * size, window.begin});
  }
  if (limit == mask::full && window.end < kv_tokens && window.end % size != 0) {
    int const index = ceil_div(larger(window.end, sinks), size) - 1;
    use(0, index, key_range{window.end, smaller((index + 1) * size, kv_tokens)});
  }
  for_each_far_run(window, sinks, kv_tokens, estimate, limit, run_blocks<Use>{size, use});
}

}  // namespace omnisparse::detail
