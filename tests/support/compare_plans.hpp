/// @file
/// Two plans of one call, decided by two planners in numbers of different precision.
#pragma once

#include <omnisparse/plan/plan.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>
#include <vector>

namespace testing_support {

/// Planners may differ where the deciding number is a tie at rounding, which random input makes
/// rare: in one row of so many, in one list entry of so many, and in the recalls by so much.
struct plan_ties {
  int rows;
  int entries;
  float recall;
};

/// Compares a plan with the one that was wanted.
inline void check_same_plan(omnisparse::plan_view<omnisparse::host> const& plan,
                            omnisparse::plan_view<omnisparse::host> const& wanted,
                            plan_ties const& ties, std::string const& what) {
  std::int64_t rows = 0, kept = 0, entries = 0;
  for (std::int64_t n = 0; n < plan.row_count(); ++n) rows += plan.rows[n] != wanted.rows[n];
  for (std::int64_t l = 0; l < plan.list_count(); ++l) {
    int const* const a = plan.kept + l * plan.capacity;
    int const* const b = wanted.kept + l * wanted.capacity;
    std::vector<int> differ;
    std::set_symmetric_difference(a, a + plan.kept_counts[l], b, b + wanted.kept_counts[l],
                                  std::back_inserter(differ));
    kept += static_cast<std::int64_t>(differ.size());
    entries += wanted.kept_counts[l];
    CHECK_MESSAGE(std::abs(plan.recalls[l] - wanted.recalls[l]) < ties.recall, what);
  }
  CHECK_MESSAGE(rows * ties.rows <= plan.row_count(), what << ": rows that differ: " << rows);
  CHECK_MESSAGE(kept * ties.entries <= entries + 1000,
                what << ": list entries that differ: " << kept << " of " << entries);
}

}  // namespace testing_support
