/// @file
/// The smallest legal policy of each role: what the library may ask for and no more.
#pragma once

#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::testing {

/// A selector by position.
struct odd_positions {
  using observes = observation::nothing;
  OMNISPARSE_HD constexpr bool keeps(observes, query_row row) const noexcept {
    return row.position % 2 == 1;
  }
};
/// A selector by contrast, without options.
struct leans_to_context {
  using observes = observation::sink_and_mean;
  OMNISPARSE_HD constexpr bool keeps(observes seen, query_row) const noexcept {
    return seen.mean > seen.sink;
  }
};
/// A selector by far mass, without options.
struct mostly_far {
  using observes = observation::near_and_far;
  OMNISPARSE_HD constexpr bool keeps(observes seen, query_row) const noexcept {
    return seen.lse_far > seen.lse_near;
  }
};
/// A rescue by position.
struct every_tenth {
  using observes = observation::nothing;
  OMNISPARSE_HD constexpr bool rescues(observes, query_row row) const noexcept {
    return row.position % 10 == 0;
  }
};
/// A scorer that never looks: earlier keys are worth more.
struct oldest_first {
  using observes = observation::nothing;
  OMNISPARSE_HD constexpr bool probes(int, int) const noexcept { return false; }
  OMNISPARSE_HD constexpr float score(observes, token t) const noexcept {
    return -static_cast<float>(t.position);
  }
};
/// A scorer by the largest share any probe pays.
struct peak_share {
  using observes = observation::probe_mass;
  OMNISPARSE_HD constexpr bool probes(int row, int) const noexcept { return row % 3 == 0; }
  OMNISPARSE_HD constexpr float score(observes seen, token) const noexcept { return seen.peak; }
};
/// A budget that asks for too much: the backend clamps it.
struct greedy {
  using observes = observation::nothing;
  OMNISPARSE_HD constexpr int tokens(observes, kv_extent) const noexcept { return 1 << 30; }
};
/// A budget by the asking head's reach.
struct half_reach {
  using observes = observation::own_reach;
  float recall = 0.9f;
  OMNISPARSE_HD constexpr int tokens(observes seen, kv_extent) const noexcept {
    return seen.reach / 2;
  }
};

}  // namespace omnisparse::testing
