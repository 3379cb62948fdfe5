/// @file
/// What policies may look at, as finished numbers: a policy compares and never calls exp.
#pragma once

#include <omnisparse/core/math.hpp>

#include <concepts>

namespace omnisparse {

/// Which keys stand behind k_mean of `observation::sink_and_mean`.
enum class pool_range : unsigned char {
  whole_call,  ///< all keys of the call, future ones too: after the published figure
  past         ///< only keys at or before the row; cutting a prefill into calls changes nothing
};

/// How the mass of what a row does not see is estimated from block moments of the keys. The far
/// keys are covered by a pyramid of blocks: `per_level` to `per_level + 3` blocks of `block` tokens
/// next to the near field, then of 4 x `block`, and so on; blocks start at absolute positions. s is
/// the softmax scale.
struct far_estimate {
  enum class kind : unsigned char {
    moments,     ///< s q.mean + weight s^2 q^2.variance / 2 + ln n, the estimate
    upper_bound  ///< s q.mean + s |q| radius + ln n, never below the truth
  };
  kind by = kind::moments;
  float variance_weight = 1.f;  ///< of the variance term, in [0, 1e30]; 1 is a Gaussian's
  int block = 64;               ///< tokens in a block of the lowest level, in [1, 2^20]
  int per_level = 4;            ///< blocks per level, in [1, 2^20]

  /// What is wrong with the options, or null.
  constexpr char const* refuses() const noexcept {
    bool const sound = block >= 1 && block <= 1 << 20 && per_level >= 1 && per_level <= 1 << 20 &&
                       is_up_to(variance_weight, 1e30f);
    if (!sound) {
      return "omnisparse: far_estimate needs block and per_level in [1, 2^20] and a "
             "variance_weight in [0, 1e30]";
    }
    if (by != kind::moments && by != kind::upper_bound) {
      return "omnisparse: far_estimate goes by kind::moments or kind::upper_bound";
    }
    return nullptr;
  }
};

/// The statistic by which the flattest head is found; ties go to the lowest head.
enum class flatness_by : unsigned char {
  simpson,    ///< smallest sum of squared shares
  top_share,  ///< smallest share held by the largest 5 % of the tokens
  entropy     ///< largest entropy
};

namespace observation {

/// Nothing: the policy decides by position alone, and nothing is computed for it.
struct nothing {};

/// The row's logits (scaled q.k) on the first key and on the mean of the remaining keys, and the
/// softmax share of the mean, in [0, 1]. An empty pool has share 0; logits that give no share, of
/// which one is NaN, have share 1: the row looks.
struct sink_and_mean {
  float sink = 0, mean = 0, share = 0;
};

/// Log-sum-exp (nats) of the near field, exact, and of all that is farther away, estimated;
/// far_mass = sigmoid(lse_far - lse_near), in [0, 1]; 0 where nothing is far, 1 where it is NaN or
/// beyond the range of the numbers.
struct near_and_far {
  float lse_near = 0, lse_far = 0, far_mass = 0;
};

/// The share of the row's mass that near field and list hold, estimated, in [0, 1]; 0 where it is
/// NaN or beyond the range of the numbers.
struct coverage {
  float share = 1;
};

/// One key of a chunk: the attention probability that the probe rows of all heads of its group
/// put on it outside their near fields (sum, largest), and how many (row, head) pairs see it so. A
/// pair whose probabilities are NaN puts none on any key.
struct probe_mass {
  float mass = 0, peak = 0;
  int rows = 0;
};

/// reach(g, recall) of the asking head.
struct own_reach {
  int reach = 0;
};

/// reach(g, recall) of every KV head of the sequence, and which head is flattest.
struct all_reaches {
  int const* reach = nullptr;  ///< [heads]
  int heads = 0, flattest = 0;
};

template <class O>
concept of_row =
    std::same_as<O, nothing> || std::same_as<O, sink_and_mean> || std::same_as<O, near_and_far>;
template <class O>
concept of_list = std::same_as<O, nothing> || std::same_as<O, coverage>;
template <class O>
concept of_token = std::same_as<O, nothing> || std::same_as<O, probe_mass>;
template <class O>
concept of_profile =
    std::same_as<O, nothing> || std::same_as<O, own_reach> || std::same_as<O, all_reaches>;
template <class O>
concept of_step = std::same_as<O, nothing> || std::same_as<O, sink_and_mean>;

}  // namespace observation
}  // namespace omnisparse
