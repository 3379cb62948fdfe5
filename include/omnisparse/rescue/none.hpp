/// @file
/// No row is rescued.
#pragma once

#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::rescue {

/// The list is final, as published.
struct none {
  using observes = observation::nothing;
  OMNISPARSE_HD constexpr bool rescues(observes, query_row) const noexcept { return false; }
};

}  // namespace omnisparse::rescue
