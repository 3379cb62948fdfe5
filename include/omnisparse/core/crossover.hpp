/// @file
/// Which calls run dense because planning cannot pay at their size.
#pragma once

#include <omnisparse/core/shape.hpp>

namespace omnisparse {

/// What a functor that plans does with calls too short for planning to pay. `attend.runs_dense`
/// tells which those are. Only a call that plans and attends looks at it: `plan` always plans, and
/// `run` follows the plan that it is given.
enum class crossover : unsigned char {
  never,    ///< every call plans: the default of a functor
  measured  ///< short calls run dense, by a table measured for each backend: the presets' default
};

/// The size from which on planning pays on one class of devices: calls over fewer keys, or whose
/// dense attention takes fewer floating-point operations, run dense.
struct crossover_point {
  int kv_tokens = 0;
  double flops = 0;

  /// Is dense attention the faster way for this shape? Lengths are not looked at: they may be on
  /// the device.
  OMNISPARSE_HD constexpr bool prefers_dense(attention_shape const& s, mask limit) const noexcept {
    double const rows = s.q_tokens, keys = s.kv_tokens;
    double const pairs = limit == mask::full ? rows * keys
                         : rows <= keys      ? rows * (keys - (rows - 1) / 2)
                                             : keys * (keys + 1) / 2;
    return s.kv_tokens < kv_tokens || 4.0 * s.dim * s.batch * s.q_heads * pairs < flops;
  }
};

}  // namespace omnisparse
