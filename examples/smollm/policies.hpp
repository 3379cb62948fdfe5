/// @file
/// The demo's policies by name, and one layer's attention with everything that the table reports.
#pragma once

#include "forward.hpp"

#include <omnisparse/presets.hpp>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace smollm {

/// The options that the command line sets; 0: the preset's own.
struct policy_options {
  float recall = 0;  ///< of each head's list; 0: the preset's own
  float epsilon = omnisparse::presets::local_first_options{}.epsilon;
  float least = omnisparse::presets::local_first_options{}.least;
  int window = 0;
  int budget = 0;  ///< tokens per list, the same for every head, in place of recall; 0: by recall
  int chunk_rows = omnisparse::presets::local_first_options{}.chunk_rows;
};

/// What one layer's prefill was like.
struct layer_result {
  omnisparse::attention_plan<omnisparse::host> plan;
  omnisparse::plan_summary summary;
  std::vector<float> recall;  ///< [heads, tokens], the share of its true mass that a row saw
  double plan_seconds = 0;
  double attention_seconds = 0;  ///< planning not included
};

/// One policy at work: prefill and decode of every layer. Made by `make_runner`.
struct runner {
  std::string name;
  omnisparse::near_field near;
  /// Attends in layer t.layer and stores what its slimmer keeps.
  std::function<layer_result(layer_tensors const&)> prefill;
  /// One token of layer t.layer: appends k and v, attends, writes out. Returns seconds.
  std::function<double(layer_tensors const&)> decode;
  std::function<std::size_t()> cache_bytes;
};

using cache_type = omnisparse::kv_cache<omnisparse::backend::cpu, float>;

namespace detail {

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The share of each row's true attention mass that a sparse call saw: exp(lse_sparse - lse_full).
inline std::vector<float> true_recall(layer_tensors const& t, std::vector<float> const& lse,
                                      omnisparse::attention_shape const& shape) {
  auto const dense = omnisparse::attention{omnisparse::backend::cpu{}};
  omnisparse::workspace<> memory(dense.workspace_bytes(shape));
  std::vector<float> full(lse.size());
  matrix unused(shape.q_tokens, shape.q_heads * shape.dim);
  int const extents[3] = {1, shape.q_heads, shape.q_tokens};
  or_throw(dense(
      t.q, t.k, t.v,
      omnisparse::view_tokens_first(unused.data(), {1, shape.q_heads, shape.q_tokens, shape.dim}),
      omnisparse::lse_view<float>(full.data(), extents), memory));
  for (std::size_t n = 0; n < full.size(); ++n) full[n] = std::min(1.f, std::exp(lse[n] - full[n]));
  return full;
}

}  // namespace detail

/// A runner of the functor `attend`, with a cache for `most_tokens` tokens a layer. `dense`: there
/// is no plan to make, every row sees everything.
template <class Attention>
runner make_runner(std::string name, Attention const& attend, model_config const& config,
                   int most_tokens, bool dense) {
  using namespace omnisparse;
  struct state {
    cache_type cache;
    std::vector<int> sequences;
    workspace<> memory;
    workspace<> step;
  };
  kv_cache_options const options{.sequences = config.layers,
                                 .kv_heads = config.kv_heads,
                                 .dim = config.head_dim(),
                                 .max_tokens = most_tokens};
  auto const s = std::make_shared<state>(state{cache_type(options), {}, {}, {}});
  if (!s->cache) throw std::runtime_error("not enough memory for the cache");
  for (int l = 0; l < config.layers; ++l) {
    int sequence = 0;
    or_throw(s->cache.add(sequence));
    s->sequences.push_back(sequence);
  }
  s->step = workspace<>(attend.decode_workspace_bytes(s->cache, 1, config.heads));

  runner r;
  r.name = std::move(name);
  r.near = attend.policies().near;
  r.prefill = [=](layer_tensors const& t) {
    attention_shape const shape = shape_of(t.q, t.k);
    if (s->memory.bytes() == 0) s->memory = workspace<>(attend.workspace_bytes(shape));
    layer_result result;
    result.plan = attend.make_plan(shape);
    if (!result.plan) throw std::runtime_error("not enough memory for a plan");
    auto const plan = result.plan.view();
    std::vector<float> lse(static_cast<std::size_t>(plan.row_count()));
    int const extents[3] = {1, shape.q_heads, shape.q_tokens};
    lse_view<float> const lses(lse.data(), extents);
    double const start = detail::seconds();
    if (dense) {
      std::fill_n(plan.rows, plan.row_count(), row_class::rescued);
    } else {
      or_throw(attend.plan(t.q, t.k, plan, s->memory));
    }
    double const planned = detail::seconds();
    or_throw(attend.run(t.q, t.k, t.v, plan, t.out, lses, s->memory));
    result.attention_seconds = detail::seconds() - planned;
    result.plan_seconds = dense ? 0 : planned - start;
    result.summary = summarize(plan, attend.policies().near, attend.policies().limit);
    if (dense) {  // rescued by no policy: every row simply sees everything
      result.summary.rescued = 0;
      result.summary.kept = shape.kv_tokens;
      for (auto& head : result.summary.heads) head.rescued = 0;
      for (auto& head : result.summary.kv_heads) head.kept = shape.kv_tokens;
      result.recall.assign(lse.size(), 1.f);
    } else {
      result.recall = detail::true_recall(t, lse, shape);
    }
    or_throw(
        attend.slim(t.k, t.v, plan, s->cache, s->sequences[static_cast<std::size_t>(t.layer)]));
    return result;
  };
  r.decode = [=](layer_tensors const& t) {
    int const sequence = s->sequences[static_cast<std::size_t>(t.layer)];
    double const start = detail::seconds();
    auto const token_of = [](tensor_view<float const> const& x) {
      return tensor_view<float const, host, 3>(x.data, {x.extent(1), 1, x.extent(3)},
                                               {x.stride(1), x.stride(2), 1});
    };
    or_throw(s->cache.append(sequence, token_of(t.k), token_of(t.v), segment::text));
    or_throw(attend.decode(t.q, s->cache, t.out, s->step,
                           tensor_view<int const, host, 1>(&sequence, {1})));
    return detail::seconds() - start;
  };
  r.cache_bytes = [=] { return s->cache.bytes_in_use(); };
  return r;
}

/// The demo's four policies by name; throws std::invalid_argument for another name.
inline runner runner_of(std::string const& name, policy_options const& o,
                        model_config const& config, int document_tokens, int most_tokens) {
  using namespace omnisparse;
  backend::cpu const cpu{};
  if (name == "full") {
    return make_runner(name, attention{cpu}, config, most_tokens, true);
  }
  if (name == "published") {
    return make_runner(name,
                       presets::published(cpu, {.recall = o.recall > 0 ? o.recall : 0.95f,
                                                .below = crossover::never}),
                       config, most_tokens, false);
  }
  if (name == "band") {
    int const window = o.window > 0 ? o.window : clamped(document_tokens / 64, 256, 1024);
    auto const band = attention{cpu}
                          .with(near_field{.window = window, .sinks = 4})
                          .with(selector::none{})
                          .with(budget::fixed{.count = 0})
                          .with(slim::kept_tokens{});
    return make_runner(name, band, config, most_tokens, false);
  }
  if (name == "local_first") {
    presets::local_first_options options{.window = o.window,
                                         .epsilon = o.epsilon,
                                         .least = o.least,
                                         .chunk_rows = o.chunk_rows,
                                         .below = crossover::never};
    if (o.recall > 0) options.recall = o.recall;
    auto const local = presets::local_first(cpu, document_tokens, options);
    if (o.budget > 0) {
      return make_runner(name, local.with(budget::fixed{.count = o.budget}), config, most_tokens,
                         false);
    }
    return make_runner(name, local, config, most_tokens, false);
  }
  throw std::invalid_argument("there is no policy '" + name +
                              "': choose full, published, local_first or band");
}

}  // namespace smollm
