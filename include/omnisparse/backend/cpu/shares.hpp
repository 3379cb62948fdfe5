/// @file
/// Shares of a softmax from logarithms of masses, for every input: what gives no share decides for
/// looking.
#pragma once

#include <omnisparse/core/merge.hpp>

#include <cmath>

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

/// The share of `part` in part + other, log-masses in nats; 0 where the part is empty, `unknown`
/// where they give none.
template <class A>
float mass_share(A part, A other, float unknown) noexcept {
  if (is_empty(part)) return 0.f;
  float const share = static_cast<float>(A(1) / (A(1) + std::exp(other - part)));
  return is_nan(share) ? unknown : share;
}

/// The softmax share of the mean key against the sink, from their logits; 1 where they give none.
inline double contrast_share(double on_sink, double on_mean) noexcept {
  double const share = 1.0 / (1.0 + std::exp(on_sink - on_mean));
  return is_nan(share) ? 1.0 : share;
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
