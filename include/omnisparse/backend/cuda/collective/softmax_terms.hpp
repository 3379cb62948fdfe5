/// @file
/// The numbers by which kernels make logits of products, and terms of logits.
#pragma once

#include <omnisparse/core/dtype.hpp>
#include <omnisparse/core/math.hpp>
#include <omnisparse/core/softmax_scale.hpp>

#include <type_traits>

namespace omnisparse::collective {

inline constexpr float log2_e = 1.44269504088896340736f, ln_2 = 0.69314718055994530942f;

/// The softmax scale, rounded once. Made on the host: as a kernel's parameter it costs no register.
struct logit_scale {
  float nats = 0.f;  ///< what makes a logit of q . k
  float bits = 0.f;  ///< the same in log2 units, so that exponentials are powers of 2

  static logit_scale of(softmax_scale scale, int dim) noexcept {
    // As small as keeps every scaled number normal, and a quotient by it finite.
    double const x = larger(scale.of<double>(dim), 0x1p-120);
    return {static_cast<float>(x), static_cast<float>(1.44269504088896340736 * x)};
  }
};

/// How a softmax over up to `keys` keys sums terms 2^x, where x is at most `slack`: as 2^(x - k),
/// so that their sum stays below 1/2 and no weighted sum of finite values overflows.
struct softmax_terms {
  static constexpr int slack = 8;  ///< how far a row's maximum may be behind, in log2 units

  logit_scale scale = {};
  float lift = 0.f;   ///< k
  float drop = 1.f;   ///< 2^-k
  float raise = 1.f;  ///< 2^k

  /// Values of half are so small that their sums need no k.
  template <class T>
  static constexpr bool lifts = !std::is_same_v<T, half>;
  /// Is the k a factor of the terms, which changes no bit, or an addend of their exponents, which
  /// costs nothing? Terms of 16 bits do not see the difference.
  template <class T>
  static constexpr bool drops = std::is_same_v<T, float>;

  template <class T>
  static softmax_terms of(softmax_scale scale, int dim, int keys) noexcept {
    softmax_terms t;
    t.scale = logit_scale::of(scale, dim);
    if constexpr (lifts<T>) {
      int bits = 0;
      while (bits < 31 && keys >> bits != 0) ++bits;
      t.lift = static_cast<float>(bits + slack + 1);
      for (int n = 0; n < bits + slack + 1; ++n) t.drop *= 0.5f, t.raise *= 2.f;
    }
    return t;
  }
};

}  // namespace omnisparse::collective
