/// @file
/// Each head keeps what it needs.
#pragma once

#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::budget {

/// The head's own reach: ragged counts, the fewest tokens at a given recall per head. Ours.
struct per_head {
  using observes = observation::own_reach;
  float recall = 0.95f;  ///< share of the mass in [0, 1]

  OMNISPARSE_HD constexpr int tokens(observes seen, kv_extent) const noexcept { return seen.reach; }
};

}  // namespace omnisparse::budget
