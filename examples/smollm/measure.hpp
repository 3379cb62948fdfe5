/// @file
/// One policy through the whole demo: prefill, perplexity, question, answer, and the numbers.
#pragma once

#include "forward.hpp"
#include "policies.hpp"
#include "request.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

#if __has_include(<unistd.h>)
#  include <unistd.h>
#endif

namespace smollm {

/// What one policy showed: a row of the table, what every head did, and the answer's tokens.
struct measurement {
  std::string policy;
  omnisparse::near_field near;
  std::vector<layer_result> layers;
  std::vector<int> answer;
  double perplexity = 0;
  double prefill_seconds = 0;  ///< attention and planning included, our measuring not
  double decode_seconds = 0;   ///< attention alone, all steps together
  int decode_steps = 0;
  std::size_t cache_bytes = 0;  ///< after the document, before the question
};

namespace detail {

/// One line on stderr that renews itself; silent where nobody watches.
inline void say_progress(std::string const& policy, char const* stage, int done, int of) {
#if defined(STDERR_FILENO)
  if (isatty(STDERR_FILENO) == 0) return;
  std::fprintf(stderr, "\r\033[K%s: %s %d/%d%s", policy.c_str(), stage, done, of,
               done == of ? "\r\033[K" : "");
#endif
}

/// Puts the question to the model and lets it answer, greedily, token by token.
inline void answer(model const& m, runner const& policy, request const& r, int new_tokens,
                   measurement& seen) {
  int position = static_cast<int>(r.document.size());
  auto const step = [&](int token) {
    matrix const hidden = forward(m, {&token, 1}, position, [&](layer_tensors const& t) {
      seen.decode_seconds += policy.decode(t);
    });
    ++position;
    ++seen.decode_steps;
    return most_likely_next(m, hidden);
  };
  int next = r.end;
  for (int const token : r.question) next = step(token);
  while (next != r.end && static_cast<int>(seen.answer.size()) < new_tokens) {
    seen.answer.push_back(next);
    say_progress(policy.name, "answer, token", static_cast<int>(seen.answer.size()), new_tokens);
    next = step(next);
  }
  say_progress(policy.name, "answer, token", new_tokens, new_tokens);
}

inline double mean(float const* values, std::size_t count) {
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += static_cast<double>(values[i]);
  return count == 0 ? 1 : sum / static_cast<double>(count);
}

}  // namespace detail

/// Runs one policy. `new_tokens` = 0: reads the document only.
inline measurement measure(model const& m, runner const& policy, request const& r, int new_tokens) {
  measurement seen;
  seen.policy = policy.name, seen.near = policy.near;
  double off_clock = 0;
  double const start = detail::seconds();
  matrix const hidden = forward(m, r.document, 0, [&](layer_tensors const& t) {
    double const begin = detail::seconds();
    layer_result layer = policy.prefill(t);
    off_clock += detail::seconds() - begin - layer.plan_seconds - layer.attention_seconds;
    seen.layers.push_back(std::move(layer));
    detail::say_progress(policy.name, "prefill, layer", t.layer + 1, m.config.layers);
  });
  seen.prefill_seconds = detail::seconds() - start - off_clock;
  seen.cache_bytes = policy.cache_bytes();
  seen.perplexity = perplexity(m, hidden, r.document, static_cast<int>(r.document.size()) / 2 - 1);
  if (new_tokens > 0) detail::answer(m, policy, r, new_tokens, seen);
  return seen;
}

/// The measurement as the table's row: its keys are a contract with who reads --json.
inline nlohmann::ordered_json row_of(measurement const& seen) {
  double active = 0, rescued = 0, density = 0, kept = 0, plan_s = 0, attention_s = 0;
  std::vector<float> recall;
  for (layer_result const& layer : seen.layers) {
    active += layer.summary.active;
    rescued += layer.summary.rescued;
    density += layer.summary.density;
    kept += layer.summary.kept;
    plan_s += layer.plan_seconds;
    attention_s += layer.attention_seconds;
    recall.insert(recall.end(), layer.recall.begin(), layer.recall.end());
  }
  double const layers = static_cast<double>(seen.layers.size());
  double const recall_mean = detail::mean(recall.data(), recall.size());
  auto const low = recall.begin() + static_cast<std::ptrdiff_t>(recall.size() / 100);
  std::nth_element(recall.begin(), low, recall.end());
  return {{"policy", seen.policy},
          {"perplexity", seen.perplexity},
          {"density", density / layers},
          {"active", active / layers},
          {"rescued", rescued / layers},
          {"kept", kept / layers},
          {"recall_mean", recall_mean},
          {"recall_p1", *low},
          {"attention_s", attention_s},
          {"plan_s", plan_s},
          {"prefill_s", seen.prefill_seconds},
          {"cache_bytes", seen.cache_bytes},
          {"decode_ms", 1e3 * seen.decode_seconds / std::max(1, seen.decode_steps)}};
}

/// What every query head of every layer did: [layers][heads].
inline nlohmann::json heads_of(measurement const& seen) {
  auto layers = nlohmann::json::array();
  for (layer_result const& layer : seen.layers) {
    auto heads = nlohmann::json::array();
    std::size_t const count = layer.summary.heads.size();
    std::size_t const group = count / layer.summary.kv_heads.size();
    std::size_t const rows = layer.recall.size() / count;
    for (std::size_t h = 0; h < count; ++h) {
      auto const& head = layer.summary.heads[h];
      heads.push_back({{"active", head.active},
                       {"rescued", head.rescued},
                       {"density", head.density},
                       {"kept", layer.summary.kv_heads[h / group].kept},
                       {"recall", detail::mean(layer.recall.data() + h * rows, rows)}});
    }
    layers.push_back(std::move(heads));
  }
  return layers;
}

/// A query head of a layer.
struct head_of_layer {
  int layer = 0, head = 0;
};

/// The head whose rows differ most in class, which makes the most telling picture: the largest
/// product of its lazy, active and rescued shares. The first head where no row is rescued.
inline head_of_layer most_varied_head(measurement const& seen) {
  head_of_layer best;
  double most = 0;
  for (std::size_t l = 0; l < seen.layers.size(); ++l) {
    auto const& heads = seen.layers[l].summary.heads;
    for (std::size_t h = 0; h < heads.size(); ++h) {
      double const rescued = heads[h].rescued, active = heads[h].active;
      double const variety = (1 - active) * (active - rescued) * rescued;
      if (variety <= most) continue;
      most = variety;
      best = {static_cast<int>(l), static_cast<int>(h)};
    }
  }
  return best;
}

/// One head's plan for drawing: runs [first row, end, class], each chunk's kept tokens, the near
/// field.
inline nlohmann::json picture_of(measurement const& seen, head_of_layer which) {
  auto const plan = seen.layers.at(static_cast<std::size_t>(which.layer)).plan.view();
  auto runs = nlohmann::json::array(), lists = nlohmann::json::array();
  omnisparse::row_class const* const rows = plan.rows_at(0, which.head);
  for (int first = 0, i = 1; i <= plan.shape.q_tokens; ++i) {
    if (i < plan.shape.q_tokens && rows[i] == rows[first]) continue;
    runs.push_back({first, i, static_cast<int>(rows[first])});
    first = i;
  }
  int const kv_head = which.head / plan.shape.group();
  for (int c = 0; c < plan.chunks(); ++c) {
    int const* const kept = plan.kept_at(0, c, kv_head);
    lists.push_back(std::vector<int>(kept, kept + plan.kept_counts[plan.list(0, c, kv_head)]));
  }
  return {{"layer", which.layer},
          {"head", which.head},
          {"window", seen.near.window},
          {"sinks", seen.near.sinks},
          {"chunk_rows", plan.chunk_rows},
          {"rows", runs},
          {"kept", lists}};
}

}  // namespace smollm
