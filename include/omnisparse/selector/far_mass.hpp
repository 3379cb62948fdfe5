/// @file
/// Local first: a row looks far only when enough of its mass is out of sight.
#pragma once

#include <omnisparse/core/math.hpp>
#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::selector {

/// Active when the estimated share of attention mass beyond the near field exceeds `epsilon`.
/// A row truly below epsilon is off by at most 2 epsilon max|v| when it stays near; with
/// `.estimate = {.by = far_estimate::kind::upper_bound}` that is a guarantee, for more active rows.
/// Costs the near field's log-sum-exp and about a hundred block products a row. Ours.
struct far_mass {
  using observes = observation::near_and_far;
  float epsilon = 0.05f;       ///< mass in [0, 1]
  far_estimate estimate = {};  ///< how the far log-sum-exp is estimated

  /// What is wrong with the options, or null.
  constexpr char const* refuses() const noexcept {
    return is_up_to(epsilon, 1.f) ? nullptr
                                  : "omnisparse: selector::far_mass.epsilon is a share in [0, 1]";
  }
  OMNISPARSE_HD constexpr bool keeps(observes seen, query_row) const noexcept {
    return seen.far_mass > epsilon;
  }
};

}  // namespace omnisparse::selector
