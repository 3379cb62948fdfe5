/// @file
/// One budget for all heads, set by the flattest.
#pragma once

#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::budget {

/// Every head keeps as many tokens as the flattest head needs to hold `recall` of its probe rows'
/// mass; each keeps its own top tokens. After the published figure; the statistic is unpublished:
/// Simpson concentration, top share or entropy. Equal counts make rectangular work for a GPU.
struct flattest_head {
  using observes = observation::all_reaches;
  float recall = 0.95f;                         ///< share of the mass in [0, 1]
  flatness_by flatness = flatness_by::simpson;  ///< how the flattest head is found

  OMNISPARSE_HD constexpr int tokens(observes seen, kv_extent) const noexcept {
    return seen.reach[seen.flattest];
  }
};

}  // namespace omnisparse::budget
