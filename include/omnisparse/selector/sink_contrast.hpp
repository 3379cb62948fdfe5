/// @file
/// The published classifier: does the row lean to the sink or to the rest of the context?
#pragma once

#include <omnisparse/core/math.hpp>
#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::selector {

/// Active when the softmax share of the mean key against the first key exceeds `tau`:
/// sigmoid(s q . (k_mean - k_sink)) > tau, s the softmax scale. One dot product a row. After the
/// published figure (arXiv 2511.12201); tau, `first`, `range` and `keep_lazy` are unpublished, the
/// defaults ours. Wins on models trained with it; on others it hardly correlates with the far mass.
struct sink_contrast {
  using observes = observation::sink_and_mean;
  float tau = 0.5f;  ///< share in [0, 1]; 0.5: sink and context tie
  int first = 1;     ///< how many first keys make the sink (their mean), >= 1
  pool_range range = pool_range::whole_call;  ///< which keys the mean pools
  int keep_lazy = 0;                          ///< every keep_lazy-th position is active; 0: none

  /// What is wrong with the options, or null.
  constexpr char const* refuses() const noexcept {
    if (!is_up_to(tau, 1.f)) return "omnisparse: selector::sink_contrast.tau is a share in [0, 1]";
    if (keep_lazy < 0) {
      return "omnisparse: selector::sink_contrast.keep_lazy counts positions: it must be >= 0, 0 "
             "for none";
    }
    return nullptr;
  }
  OMNISPARSE_HD constexpr bool keeps(observes seen, query_row row) const noexcept {
    return seen.share > tau || (keep_lazy > 0 && row.position % keep_lazy == 0);
  }
};

}  // namespace omnisparse::selector
