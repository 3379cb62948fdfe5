/// @file
/// What `study` is asked for.
#pragma once

#include <string>

namespace study {

struct options {
  std::string input, policy = "local-first", budget = "own", mask = "causal", backend = "cpu";
  std::string plan_in, plan_out, out, json;
  float recall = 0.95f, epsilon = 0.05f, tau = 0.5f, least = 0.6f, share = 0.1f;
  int window = -1, sinks = -1, chunk = -1, tokens = 256;
};

}  // namespace study
