/// @file
/// Merging partial attentions over disjoint key sets: associative, empty sets neutral.
#pragma once

#include <omnisparse/core/config.hpp>

#include <cmath>

namespace omnisparse {

/// The log-sum-exp of an empty set.
template <class A = float>
OMNISPARSE_HD constexpr A empty_lse() noexcept {
  return -static_cast<A>(__builtin_huge_val());
}

/// log(exp(a) + exp(b)), nats. -inf is neutral; no overflow for any finite input.
template <class A>
OMNISPARSE_HD inline A merge_lse(A a, A b) noexcept {
  A const high = a < b ? b : a;
  A const low = a < b ? a : b;
  if (low == empty_lse<A>()) return high;
  using std::exp;
  using std::log1p;
  return high + log1p(exp(low - high));
}

/// The factor by which a partial output with log-sum-exp `part` enters a merged one with `whole`:
/// exp(part - whole), 0 for an empty part.
template <class A>
OMNISPARSE_HD inline A merge_weight(A part, A whole) noexcept {
  using std::exp;
  return part == empty_lse<A>() ? A(0) : exp(part - whole);
}

/// Merges a second partial attention into a first, in place: out [dim] and lse become those of the
/// union of both key sets. Used over heads, splits, cache lanes, and ranks of a context split.
template <class A>
OMNISPARSE_HD inline void merge_row(A* out, A& lse, A const* other_out, A other_lse,
                                    int dim) noexcept {
  A const whole = merge_lse(lse, other_lse);
  A const mine = merge_weight(lse, whole);
  A const theirs = merge_weight(other_lse, whole);
  for (int d = 0; d < dim; ++d) out[d] = out[d] * mine + other_out[d] * theirs;
  lse = whole;
}

}  // namespace omnisparse
