/// @file
/// Every row looks far.
#pragma once

#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::selector {

/// Every row is active: the default, and what most systems without query selection use.
struct all {
  using observes = observation::nothing;
  OMNISPARSE_HD constexpr bool keeps(observes, query_row) const noexcept { return true; }
};

}  // namespace omnisparse::selector
