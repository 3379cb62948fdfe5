/// @file
/// Policies that keep everything for every row, and need no plan.
#pragma once

#include <omnisparse/budget/dense.hpp>
#include <omnisparse/core/call.hpp>
#include <omnisparse/rescue/none.hpp>
#include <omnisparse/scorer/column_mass.hpp>
#include <omnisparse/selector/all.hpp>
#include <omnisparse/slim/none.hpp>

#include <concepts>

namespace omnisparse::detail {

// Is everything kept for every row?
template <class Policies>
inline constexpr bool is_dense = std::same_as<decltype(Policies::selector), selector::all> &&
                                 std::same_as<decltype(Policies::budget), budget::dense>;

// Dense attention under the same mask and scale.
template <class Policies>
constexpr auto dense_of(Policies const& p) noexcept {
  policy_set<selector::all, rescue::none, scorer::column_mass, budget::dense, slim::none,
             slim::none>
      all;
  all.limit = p.limit;
  all.scale = p.scale;
  return all;
}

}  // namespace omnisparse::detail
