/// @file
/// Two ready compositions: one after the published figure, one for models not trained for it.
#pragma once

#include <omnisparse/attention.hpp>

namespace omnisparse::presets {

/// Options of `published`; every one is unpublished, the defaults ours.
struct published_options {
  float tau = 0.5f;      ///< of the sink contrast
  float recall = 0.95f;  ///< of the flattest head
  near_field near = {};  ///< empty: a lazy row outputs 0
};

/// After the published figure (arXiv 2511.12201): sink contrast for rows, one list for the call,
/// one budget set by the flattest head, a cache of kept tokens that heads fetch by their decode
/// query. For models trained with it: on others zero rows ruin the output.
template <class Backend>
constexpr auto published(Backend backend, published_options const& o = {}) noexcept {
  return attention{backend}
      .with(o.near)
      .with(selector::sink_contrast{.tau = o.tau})
      .with(budget::flattest_head{.recall = o.recall})
      .with(slim::kept_tokens{})
      .with(slim::head_fetch{.threshold = o.tau});
}

/// Options of `local_first`. The defaults were tuned on one small model and one text: see the
/// README.
struct local_first_options {
  int window = 0;         ///< tokens; 0: a 32nd of the context, in [128, 1024]
  int sinks = 4;          ///< tokens
  float epsilon = 0.05f;  ///< far mass above which a row is active
  int tokens = 0;         ///< of a kept list; 0: a 16th of the context, at least 256
  float least = 0.6f;     ///< coverage below which a row is rescued
  int chunk_rows = 1024;  ///< rows per kept list
};

/// For models that were not trained for sparsity, and the default for all others: near field for
/// every row, far keys for the rows with mass there, everything for the few rows whose list misses
/// too much. `kv_tokens` is the context that window and list are sized for where they are 0. Every
/// seat may be exchanged: `.with(budget::flattest_head{})` sizes the lists by recall. Ours.
template <class Backend>
constexpr auto local_first(Backend backend, int kv_tokens,
                           local_first_options const& o = {}) noexcept {
  int const window = o.window > 0 ? o.window : clamped(kv_tokens / 32, 128, 1024);
  int const tokens = o.tokens > 0 ? o.tokens : larger(kv_tokens / 16, 256);
  return attention{backend}
      .with(near_field{.window = window, .sinks = o.sinks})
      .with(chunk{o.chunk_rows})
      .with(selector::far_mass{.epsilon = o.epsilon})
      .with(budget::fixed{.count = tokens})
      .with(rescue::coverage{.least = o.least})
      .with(slim::kept_tokens{});
}

}  // namespace omnisparse::presets
