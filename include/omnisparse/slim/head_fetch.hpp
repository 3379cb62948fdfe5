/// @file
/// At each step a head that leans to the sink does not read the stored visual tokens.
#pragma once

#include <omnisparse/core/math.hpp>
#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::slim {

/// The query classifier on the decode query, once per head and step: the head fetches the stored
/// visual tokens beyond its near field when the share of the mean key exceeds `threshold`. Saves
/// bandwidth, not memory; adds up with `kept_tokens`. After the published figure; the threshold and
/// `any` are unpublished, the defaults ours.
struct head_fetch {
  using observes = observation::sink_and_mean;
  float threshold = 0.5f;  ///< share in [0, 1]
  bool any = true;         ///< any head of a KV group fetches for the whole group

  /// What is wrong with the options, or null.
  constexpr char const* refuses() const noexcept {
    return is_up_to(threshold, 1.f) ? nullptr
                                    : "omnisparse: slim::head_fetch.threshold is a share in [0, 1]";
  }
  OMNISPARSE_HD constexpr bool fetches(observes seen) const noexcept {
    return seen.share > threshold;
  }
};

}  // namespace omnisparse::slim
