/// @file
/// The same number of tokens always.
#pragma once

#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::budget {

/// Every head keeps `count` tokens a chunk: memory and time known before the call.
struct fixed {
  using observes = observation::nothing;
  int count = 256;  ///< tokens, >= 0

  /// What is wrong with the options, or null.
  constexpr char const* refuses() const noexcept {
    return count >= 0 ? nullptr : "omnisparse: budget::fixed.count counts tokens: it must be >= 0";
  }
  OMNISPARSE_HD constexpr int tokens(observes, kv_extent) const noexcept { return count; }
};

}  // namespace omnisparse::budget
