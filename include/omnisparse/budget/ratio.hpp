/// @file
/// A share of the tokens.
#pragma once

#include <omnisparse/core/math.hpp>
#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::budget {

/// Every head keeps `share` of the tokens that its chunk may keep, rounded up.
struct ratio {
  using observes = observation::nothing;
  float share = 0.1f;  ///< in [0, 1]

  /// What is wrong with the options, or null.
  constexpr char const* refuses() const noexcept {
    return is_up_to(share, 1.f) ? nullptr : "omnisparse: budget::ratio.share is a share in [0, 1]";
  }
  OMNISPARSE_HD constexpr int tokens(observes, kv_extent kv) const noexcept {
    // By the bits of the share first: flags let comparisons miss NaN, and 0 times infinity is one.
    if (!is_up_to(share, 1.f)) return is_nan(share) || share < 0.f ? 0 : kv.tokens;
    float const exact = share * static_cast<float>(kv.tokens);
    if (!(exact > 0.f)) return 0;
    if (exact >= static_cast<float>(kv.tokens)) return kv.tokens;  // what is left fits an int
    int const whole = static_cast<int>(exact);
    return whole + (static_cast<float>(whole) < exact ? 1 : 0);
  }
};

}  // namespace omnisparse::budget
