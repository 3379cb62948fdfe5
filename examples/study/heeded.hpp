/// @file
/// Every option is heeded or refused: which of them mean something beside which others.
#pragma once

#include "../common/write_file.hpp"
#include "options.hpp"

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace study {

/// Throws std::runtime_error for the first option that was given and would change nothing.
inline void check_heeded(options const& o) {
  auto const refuse = [](bool given, char const* name, std::string const& why) {
    if (given) throw std::runtime_error(std::string(name) + " has no effect " + why);
  };
  refuse(o.threads && o.backend != "cpu", "--threads", "but with --backend cpu: leave it out");
  if (o.plan_in) {
    std::string const why = "with --plan-in: the plan has decided already, so leave it out";
    refuse(o.policy.has_value(), "--policy", why);
    refuse(o.budget.has_value(), "--budget", why);
    refuse(o.recall.has_value(), "--recall", why);
    refuse(o.epsilon.has_value(), "--epsilon", why);
    refuse(o.tau.has_value(), "--tau", why);
    refuse(o.least.has_value(), "--least", why);
    refuse(o.tokens.has_value(), "--tokens", why);
    refuse(o.share.has_value(), "--share", why);
    return;
  }
  std::string const policy = o.policy_name(), budget = o.budget.value_or("own");
  refuse(o.tau && policy != "published", "--tau", "but with --policy published: leave it out");
  for (auto const& [given, name] :
       {std::pair{o.epsilon.has_value(), "--epsilon"}, std::pair{o.least.has_value(), "--least"}}) {
    refuse(given && policy != "local-first", name,
           "but with --policy local-first: leave it out or choose that policy");
  }
  bool const lists = policy == "published" || policy == "local-first";
  std::string const no_list = "with --policy " + policy +
                              (policy == "dense" ? ", whose rows see everything: leave it out"
                                                 : ", whose rows have no lists: leave it out");
  refuse(!lists && o.budget, "--budget", no_list);
  refuse(!lists && o.recall, "--recall", no_list);
  refuse(!lists && o.tokens, "--tokens", no_list);
  refuse(!lists && o.share, "--share", no_list);
  refuse(!lists && o.chunk, "--chunk", no_list);
  refuse(policy == "dense" && o.window, "--window", no_list);
  refuse(policy == "dense" && o.sinks, "--sinks", no_list);
  refuse(o.tokens && budget != "fixed", "--tokens", "but with --budget fixed: add that");
  refuse(o.share && budget != "ratio", "--share", "but with --budget ratio: add that");
  refuse(o.recall && (budget == "fixed" || budget == "ratio" || budget == "dense"), "--recall",
         "with --budget " + budget + ", which goes by no reach: leave it out");
}

/// Throws std::runtime_error where a file that is written is one that is read, or is written twice.
inline void check_files(options const& o) {
  struct file {
    char const* name;
    std::optional<std::string> const& path;
  };
  std::optional<std::string> const input = o.input;
  file const all[] = {{"the input", input},
                      {"--plan-in", o.plan_in},
                      {"--plan-out", o.plan_out},
                      {"--out", o.out},
                      {"--json", o.json}};
  constexpr int inputs = 2, count = 5;
  for (int n = 0; n < count; ++n) {
    if (all[n].path && all[n].path->empty()) {
      throw std::runtime_error(std::string(all[n].name) + " needs the name of a file");
    }
    for (int m = 0; n >= inputs && all[n].path && m < n; ++m) {
      if (all[m].path && common::is_same_file(*all[n].path, *all[m].path)) {
        throw std::runtime_error(std::string(all[n].name) + " would overwrite " + all[m].name +
                                 ": give it a file of its own");
      }
    }
  }
}

}  // namespace study
