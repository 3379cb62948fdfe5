/// @file
/// A selector of a user's own, for the CPU loop and the CUDA kernel alike.
#pragma once

#include <omnisparse/core/policy.hpp>

namespace mine {

/// Looks far where more than `epsilon` of the mass is out of sight, and on every `stride`-th row
/// anyway.
struct far_or_strided {
  using observes = omnisparse::observation::near_and_far;
  float epsilon = 0.05f;
  int stride = 64;
  OMNISPARSE_HD constexpr bool keeps(observes seen, omnisparse::query_row row) const noexcept {
    return seen.far_mass > epsilon || row.position % stride == 0;
  }
};
// A policy is a value: test it by plain numbers.
static_assert(far_or_strided{}.keeps({.lse_near = 9.f, .lse_far = 0.f, .far_mass = 1e-4f},
                                     {128, 0}));
static_assert(!far_or_strided{}.keeps({.lse_near = 9.f, .lse_far = 0.f, .far_mass = 1e-4f},
                                      {129, 0}));

}  // namespace mine
