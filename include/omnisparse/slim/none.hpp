/// @file
/// The cache keeps and reads everything.
#pragma once

#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::slim {

/// A full cache, fully read: the default, and the baseline for bytes and time.
struct none {
  using observes = observation::nothing;
  OMNISPARSE_HD constexpr bool stores(token) const noexcept { return true; }
  OMNISPARSE_HD constexpr bool fetches(observes) const noexcept { return true; }
};

}  // namespace omnisparse::slim
