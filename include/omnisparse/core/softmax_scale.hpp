/// @file
/// The factor between a dot product and a logit.
#pragma once

#include <omnisparse/core/config.hpp>

#include <cmath>

namespace omnisparse {

/// The factor on q . k that makes a logit, wherever one is made: attention, estimates, contrast,
/// probes, decode. 0, the default, stands for 1 / sqrt D of the shape's D. Whoever pads q, k and v
/// with zero columns, or whose model scales otherwise, gives the factor itself.
struct softmax_scale {
  double value = 0;  ///< in (0, 1e30], or 0 for 1 / sqrt D

  /// The factor for heads of `dim` elements.
  template <class A>
  OMNISPARSE_HD A of(int dim) const noexcept {
    return value > 0 ? static_cast<A>(value) : A(1) / std::sqrt(static_cast<A>(dim));
  }
  /// The logit of a dot product over `dim` elements, nats.
  template <class A>
  OMNISPARSE_HD A logit(A dot, int dim) const noexcept {
    return value > 0 ? dot * static_cast<A>(value) : dot / std::sqrt(static_cast<A>(dim));
  }
};

}  // namespace omnisparse
