/// @file
/// No row looks far.
#pragma once

#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::selector {

/// Every row is lazy: plain sliding-window attention, the baseline a selector has to beat.
/// Rows of text segments stay active, as always.
struct none {
  using observes = observation::nothing;
  OMNISPARSE_HD constexpr bool keeps(observes, query_row) const noexcept { return false; }
};

}  // namespace omnisparse::selector
