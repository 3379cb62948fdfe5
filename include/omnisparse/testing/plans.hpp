/// @file
/// Plans for tests: random ones, and the ones at the edges.
#pragma once

#include <omnisparse/plan/plan.hpp>
#include <omnisparse/testing/random.hpp>

namespace omnisparse::testing {

/// What a test plan keeps and which rows are of which class.
enum class plan_kind {
  random,
  empty,
  full,
  first_token,
  last_token,
  one_token,
  all_lazy,
  all_active,
  all_rescued,
  clustered
};
inline constexpr plan_kind plan_kinds[] = {
    plan_kind::random,      plan_kind::empty,     plan_kind::full,     plan_kind::first_token,
    plan_kind::last_token,  plan_kind::one_token, plan_kind::all_lazy, plan_kind::all_active,
    plan_kind::all_rescued, plan_kind::clustered};

/// Fills a plan of any shape; lists may hold near, sink and future keys, as valid plans may.
inline void fill_plan(plan_view<host> const& plan, plan_kind kind, std::uint64_t seed) {
  generator g(seed);
  for (std::int64_t n = 0; n < plan.row_count(); ++n) {
    plan.rows[n] = kind == plan_kind::all_lazy      ? row_class::lazy
                   : kind == plan_kind::all_rescued ? row_class::rescued
                   : kind == plan_kind::random || kind == plan_kind::clustered
                       ? static_cast<row_class>(g.below(3))
                       : row_class::active;
  }
  int const keys = plan.shape.kv_tokens;
  for (std::int64_t list = 0; list < plan.list_count(); ++list) {
    int* const kept = plan.kept + list * plan.capacity;
    int const only = keys > 0 ? g.below(keys) : 0;
    int count = 0;
    bool inside = false;
    for (int j = 0; j < keys && count < plan.capacity; ++j) {
      if (g.below(9) == 0) inside = !inside;
      bool const keeps = kind == plan_kind::full          ? true
                         : kind == plan_kind::empty       ? false
                         : kind == plan_kind::first_token ? j == 0
                         : kind == plan_kind::last_token  ? j == keys - 1
                         : kind == plan_kind::one_token   ? j == only
                         : kind == plan_kind::clustered   ? inside
                                                          : g.below(3) == 0;
      if (keeps) kept[count++] = j;
    }
    plan.kept_counts[list] = count;
    plan.recalls[list] = -1.f;
  }
}

}  // namespace omnisparse::testing
