/// @file
/// Rows that the shared list serves badly attend to everything.
#pragma once

#include <omnisparse/core/math.hpp>
#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::rescue {

/// Rescued when near field and list hold less than `least` of the row's estimated mass. What the
/// list left out is estimated from block moments of exactly those tokens. Few rows are rescued and
/// they carry most of the quality (retrieval). Ours.
struct coverage {
  using observes = observation::coverage;
  float least = 0.5f;          ///< share of the mass in [0, 1]
  far_estimate estimate = {};  ///< how the left-out log-sum-exp is estimated

  /// What is wrong with the options, or null.
  constexpr char const* refuses() const noexcept {
    return is_up_to(least, 1.f) ? nullptr
                                : "omnisparse: rescue::coverage.least is a share in [0, 1]";
  }
  OMNISPARSE_HD constexpr bool rescues(observes seen, query_row) const noexcept {
    return seen.share < least;
  }
};

}  // namespace omnisparse::rescue
