/// @file
/// Nothing is dropped.
#pragma once

#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::budget {

/// Every head keeps every token: active rows are dense attention. The default.
struct dense {
  using observes = observation::nothing;
  OMNISPARSE_HD constexpr int tokens(observes, kv_extent kv) const noexcept { return kv.tokens; }
};

}  // namespace omnisparse::budget
