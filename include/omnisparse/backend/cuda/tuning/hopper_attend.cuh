/// @file
/// Tile sizes and register budgets of the Hopper kernel.
#pragma once

#include <omnisparse/core/config.hpp>

namespace omnisparse::tuning {

/// One choice of the Hopper kernel. A block is a producer warpgroup and `groups` consumer
/// warpgroups of 64 rows each; registers are per thread, and all of a block's fit 65536.
struct hopper_attend {
  int groups;              ///< consumer warpgroups
  int producer_registers;  ///< a multiple of 8, as setmaxnreg takes it
  int consumer_registers;
  bool takes_turns;  ///< warpgroups issue their products in turn

  OMNISPARSE_HD constexpr int rows() const noexcept { return 64 * groups; }
  OMNISPARSE_HD constexpr int threads() const noexcept { return 128 * (groups + 1); }
  friend constexpr bool operator==(hopper_attend const&, hopper_attend const&) = default;
};

inline constexpr int hopper_keys = 128;         ///< keys of a tile
inline constexpr int hopper_few_keys = 16;      ///< keys of a narrow tile, for sinks
inline constexpr int hopper_stages = 2;         ///< key tiles on their way or in use
inline constexpr int hopper_item_slots = 2;     ///< the item in work and the next one, no more
inline constexpr int hopper_l2_megabytes = 32;  ///< K and V that are read together

/// Measured on H100 and H200: D 64 is bound by the softmax and needs three warpgroups in turns,
/// D 128 by the products; its two fall out of step by themselves.
template <int D>
OMNISPARSE_HD constexpr hopper_attend hopper_attend_for() noexcept {
  static_assert(D == 64 || D == 128);
  if constexpr (D == 64) return {3, 32, 160, true};
  else return {2, 56, 224, false};
}

}  // namespace omnisparse::tuning
