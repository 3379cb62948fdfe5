/// @file
/// What `study` is asked for.
#pragma once

#include <optional>
#include <string>

namespace study {

/// The command line. What was not given is empty: the policy's own value holds.
struct options {
  std::string input, backend = "cpu";
  std::optional<std::string> policy, budget, mask;
  std::optional<std::string> plan_in, plan_out, out, json;
  std::optional<float> recall, epsilon, tau, least, share;
  std::optional<int> window, sinks, chunk, tokens, threads;
  std::optional<double> scale;

  /// The name of the policy; of none where a plan was given.
  std::string policy_name() const {
    return plan_in ? "given plan" : policy.value_or("local-first");
  }
};

}  // namespace study
