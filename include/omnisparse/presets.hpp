/// @file
/// Two ready compositions: one after the published figure, one for models not trained for it. Both
/// run dense where planning cannot pay, unless asked to plan always: `crossover`.
#pragma once

#include <omnisparse/attention.hpp>

namespace omnisparse::presets {

/// Options of `published`; every one is unpublished, the defaults ours.
struct published_options {
  float tau = 0.5f;                       ///< of the sink contrast
  float recall = 0.95f;                   ///< of the flattest head
  near_field near = {};                   ///< empty: a lazy row outputs 0
  crossover below = crossover::measured;  ///< of calls too short for planning to pay
};

/// After the published figure (arXiv 2511.12201): sink contrast for rows, one list for the call,
/// one budget set by the flattest head, a cache of kept tokens that heads fetch by their decode
/// query. For models trained with it: on others zero rows ruin the output. Options out of range are
/// refused by the calls.
template <class Backend>
constexpr auto published(Backend backend, published_options const& o = {}) noexcept {
  return attention{backend}
      .with(o.near)
      .with(o.below)
      .with(selector::sink_contrast{.tau = o.tau})
      .with(budget::flattest_head{.recall = o.recall})
      .with(slim::kept_tokens{})
      .with(slim::head_fetch{.threshold = o.tau});
}

/// Options of `local_first`. The defaults were chosen on one small model and one text, and looked
/// at on two more: see the README.
struct local_first_options {
  int window = 0;         ///< tokens, >= 0; 0: a 32nd of the context, in [128, 1024]
  int sinks = 4;          ///< tokens
  float epsilon = 0.05f;  ///< far mass above which a row is active
  float recall = 0.95f;  ///< of its probe rows' mass that each KV head's list holds with the window
  float least = 0.5f;    ///< coverage below which a row is rescued
  int chunk_rows = 0;    ///< rows per kept list; 0: an eighth of the context, in [512, 32768]
  crossover below = crossover::measured;  ///< of calls too short for planning to pay
};

/// For models that were not trained for sparsity, and the default for all others: near field for
/// every row, far keys for the rows with mass there, as many for each head as it needs, everything
/// for the few rows whose list misses too much. `kv_tokens` is the context that window and chunk
/// are sized for where they are 0. Every seat may be exchanged: `.with(budget::flattest_head{})`
/// shares one budget among the heads, as published. Options out of range are refused by the calls.
/// Ours.
template <class Backend>
constexpr auto local_first(Backend backend, int kv_tokens,
                           local_first_options const& o = {}) noexcept {
  int const window = o.window != 0 ? o.window : clamped(kv_tokens / 32, 128, 1024);
  int const rows = o.chunk_rows != 0 ? o.chunk_rows : clamped(kv_tokens / 8, 512, 32768);
  return attention{backend}
      .with(near_field{.window = window, .sinks = o.sinks})
      .with(chunk{rows})
      .with(o.below)
      .with(selector::far_mass{.epsilon = o.epsilon})
      .with(budget::per_head{.recall = o.recall})
      .with(rescue::coverage{.least = o.least})
      .with(slim::kept_tokens{});
}

}  // namespace omnisparse::presets
