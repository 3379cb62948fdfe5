/// @file
/// The command line of `study`.
#pragma once

#include "options.hpp"

#include <CLI/CLI.hpp>

namespace study {

inline void declare(CLI::App& app, options& o) {
  // NaN compares with nothing, so it is in no range: the bounds have to hold, not their opposites.
  auto const between = [](double low, double high, std::string const& name) {
    return CLI::Validator(
        [=](std::string const& text) {
          double x = 0;
          bool const fits = CLI::detail::lexical_cast(text, x) && x >= low && x <= high;
          return fits ? std::string() : text + " is not " + name;
        },
        name);
  };
  CLI::Validator const unit = between(0, 1, "a share in [0, 1]");
  CLI::Range const count(0, 1 << 30);
  app.add_option("input", o.input,
                 "safetensors with q [B,Hq,Nq,D], k and v [B,Hkv,Nkv,D]: F32, F16 or BF16")
      ->required();
  app.add_option("--policy", o.policy, "local-first if not given")
      ->check(CLI::IsMember({"dense", "published", "local-first", "band"}));
  app.add_option("--recall", o.recall, "mass that a list holds, for budgets by reach")->check(unit);
  app.add_option("--epsilon", o.epsilon, "far mass above which a row is active")->check(unit);
  app.add_option("--tau", o.tau, "share of the mean key above which a row is active")->check(unit);
  app.add_option("--least", o.least, "coverage below which a row is rescued")->check(unit);
  app.add_option("--window", o.window, "tokens of the near field; the policy's own if not given")
      ->check(count);
  app.add_option("--sinks", o.sinks, "first tokens that every row sees")->check(count);
  app.add_option("--chunk", o.chunk, "rows per list, 0 for one list")->check(count);
  app.add_option("--budget", o.budget,
                 "how many tokens a list holds; own, if not given: as the policy does")
      ->check(
          CLI::IsMember({"own", "flattest", "guaranteed", "per-head", "fixed", "ratio", "dense"}));
  app.add_option("--tokens", o.tokens, "of --budget fixed; 256 if not given")->check(count);
  app.add_option("--share", o.share, "of --budget ratio; 0.1 if not given")->check(unit);
  app.add_option("--mask", o.mask, "causal if not given, or the plan's own")
      ->check(CLI::IsMember({"causal", "full"}));
  app.add_option("--scale", o.scale, "factor on q . k; 1 / sqrt D if not given")
      ->check(between(1e-30, 1e30, "a factor in [1e-30, 1e30]"));
  app.add_option("--backend", o.backend)
      ->check(CLI::IsMember({"cpu", "reference", "cuda"}))
      ->capture_default_str();
  app.add_option("--threads", o.threads, "of --backend cpu; as many as OpenMP takes if not given")
      ->check(CLI::Range(1, 4096));
  app.add_option("--plan-in", o.plan_in,
                 "run this plan: rows [B,Hq,Nq], kept [B,chunks,Hkv,Nkv] as U8; its metadata "
                 "chunk_rows, window, sinks and mask, or the options");
  app.add_option("--plan-out", o.plan_out, "write the plan as byte masks");
  app.add_option("--out", o.out, "write out [B,Hq,Nq,D] and lse [B,Hq,Nq] (F32, natural log)");
  app.add_option("--json", o.json, "write the plan's summary and the times");
}

}  // namespace study
