/// @file
/// One budget for all heads that no head falls short of.
#pragma once

#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::budget {

/// The largest reach of all heads: every head holds `recall` of its probe rows' mass. Ours.
/// Costs more tokens than `flattest_head` where the flattest head is not the neediest.
struct guaranteed {
  using observes = observation::all_reaches;
  float recall = 0.95f;  ///< share of the mass in [0, 1]

  OMNISPARSE_HD constexpr int tokens(observes seen, kv_extent) const noexcept {
    int most = 0;
    for (int h = 0; h < seen.heads; ++h) most = seen.reach[h] > most ? seen.reach[h] : most;
    return most;
  }
};

}  // namespace omnisparse::budget
