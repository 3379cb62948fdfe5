/// @file
/// Merging partial attentions over disjoint key sets: associative, empty sets neutral.
#pragma once

#include <omnisparse/core/math.hpp>

#include <cmath>

namespace omnisparse {

/// The log-sum-exp of an empty set: -inf.
template <class A = float>
OMNISPARSE_HD constexpr A empty_lse() noexcept {
  return detail::unknown(-static_cast<A>(__builtin_huge_val()));
}

/// Is this the log-sum-exp of an empty set, -inf? Asks its bits, as `is_nan` does.
template <class A>
OMNISPARSE_HD constexpr bool is_empty(A lse) noexcept {
  using bits = detail::bits_of<A>;
  return __builtin_bit_cast(bits, lse) ==
         (detail::infinity_bits<A> | bits{1} << (8 * sizeof(A) - 1));
}

namespace detail {

template <class A>
OMNISPARSE_HD constexpr A not_a_number() noexcept {
  return unknown(static_cast<A>(__builtin_nan("")));
}

}  // namespace detail

inline namespace OMNISPARSE_TARGET {

/// log(exp(a) + exp(b)), nats. -inf is neutral, NaN shows; no overflow for any finite input.
template <class A>
OMNISPARSE_HD inline A merge_lse(A a, A b) noexcept {
  if (is_nan(a)) return a;
  if (is_nan(b)) return b;
  A const high = a < b ? b : a;
  A const low = a < b ? a : b;
  if (is_empty(low) || !is_finite(high)) return high;
  using std::exp;
  using std::log1p;
  return high + log1p(exp(low - high));
}

/// The factor by which a partial output with log-sum-exp `part` enters a merged one with `whole`:
/// exp(part - whole), 0 for an empty part.
template <class A>
OMNISPARSE_HD inline A merge_weight(A part, A whole) noexcept {
  using std::exp;
  return is_empty(part) ? A(0) : exp(part - whole);
}

/// Merges a second partial attention into a first, in place: out [dim] and lse become those of the
/// union of both key sets. Used over heads, splits, cache lanes, and ranks of a context split. The
/// output of an empty part is not read, so it need not have been written; two empty parts give 0. A
/// NaN lse shows in lse and all of out, finite parts have a finite union.
template <class A>
OMNISPARSE_HD inline void merge_row(A* out, A& lse, A const* other_out, A other_lse,
                                    int dim) noexcept {
  bool const mine = !is_empty(lse), theirs = !is_empty(other_lse);
  A const whole = merge_lse(lse, other_lse);
  bool const mine_overflows = mine && !is_finite(lse),
             theirs_overflow = theirs && !is_finite(other_lse);
  A my_weight = merge_weight(lse, whole), their_weight = merge_weight(other_lse, whole);
  if (mine_overflows != theirs_overflow && !is_nan(whole)) {  // beyond all that the other holds
    my_weight = mine_overflows ? A(1) : A(0);
    their_weight = A(1) - my_weight;
  }
  lse = whole;
  for (int d = 0; d < dim; ++d) {
    if (is_nan(whole)) {
      out[d] = whole;
    } else if (!mine || !theirs) {
      if (!mine) out[d] = theirs ? other_out[d] : A(0);
    } else {
      A const a = out[d], b = other_out[d];
      A const sum = a * my_weight + b * their_weight;
      // A mean of two finite numbers lies between them; only rounding takes it out of range.
      bool const rounded = !is_finite(sum) && is_finite(a) && is_finite(b) && is_finite(whole);
      out[d] = !rounded ? sum : a > A(0) ? larger(a, b) : smaller(a, b);
    }
  }
}

}  // namespace OMNISPARSE_TARGET
}  // namespace omnisparse
