/// @file
/// The Llama forward pass. Everything but attention: that is the caller's, one call a layer.
#pragma once

#include "model.hpp"

#include <omnisparse/core/tensor_view.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <span>

namespace smollm {

/// What one layer's attention reads and writes. The memory is [token, head, D], the views say so.
struct layer_tensors {
  int layer = 0;
  omnisparse::tensor_view<float const> q;     ///< [1, heads, tokens, D], after RoPE
  omnisparse::tensor_view<float const> k, v;  ///< [1, kv_heads, tokens, D], k after RoPE
  omnisparse::tensor_view<float> out;         ///< as q
};

/// One layer's attention, whatever it is made of.
using layer_attention = std::function<void(layer_tensors const&)>;

namespace detail {

/// Each row divided by its root mean square, times the norm's weights.
inline matrix rms_norm(matrix const& x, row_vector const& weights, float epsilon) {
  auto const mean_square = x.array().square().rowwise().mean();
  Eigen::ArrayXf const scale = (mean_square + epsilon).rsqrt();
  return (x.array().colwise() * scale).rowwise() * weights.array();
}

/// x W^T: a linear layer without bias.
inline matrix linear(matrix const& x, matrix const& weights) {
  matrix y(x.rows(), weights.rows());
  y.noalias() = x * weights.transpose();
  return y;
}

/// Cosine and sine of every position and channel pair.
struct rotation {
  matrix cosine, sine;  ///< [tokens, D / 2]

  rotation(model_config const& config, int first_position, int tokens)
      : cosine(tokens, config.head_dim() / 2), sine(tokens, config.head_dim() / 2) {
    for (int i = 0; i < tokens; ++i) {
      for (int p = 0; p < config.head_dim() / 2; ++p) {
        double const rate = std::pow(config.rope_base, -2.0 * p / config.head_dim());
        double const angle = (first_position + i) * rate;
        cosine(i, p) = static_cast<float>(std::cos(angle));
        sine(i, p) = static_cast<float>(std::sin(angle));
      }
    }
  }
};

/// Rotary positions, in place: channels 2p and 2p + 1 of every head turn together.
inline void rope(matrix& x, rotation const& turn) {
  Eigen::Index const pairs = turn.cosine.cols();
  for (Eigen::Index i = 0; i < x.rows(); ++i) {
    float const* const cosine = turn.cosine.row(i).data();
    float const* const sine = turn.sine.row(i).data();
    for (Eigen::Index head = 0; head < x.cols() / (2 * pairs); ++head) {
      float* const channels = x.row(i).data() + head * 2 * pairs;
      for (Eigen::Index p = 0; p < pairs; ++p) {
        float const a = channels[2 * p], b = channels[2 * p + 1];
        channels[2 * p] = a * cosine[p] - b * sine[p];
        channels[2 * p + 1] = a * sine[p] + b * cosine[p];
      }
    }
  }
}

/// x to x + down(silu(gate x) * up x) of the normed x, a piece of the tokens at a time so that the
/// wide middle stays small.
inline void feed_forward(matrix& x, layer_weights const& w, float epsilon) {
  constexpr Eigen::Index piece = 1024;
  for (Eigen::Index at = 0; at < x.rows(); at += piece) {
    auto rows = x.middleRows(at, std::min(piece, x.rows() - at));
    matrix const normed = rms_norm(rows, w.feed_norm, epsilon);
    matrix gate = linear(normed, w.gate);
    gate = gate.array() / (1.f + (-gate.array()).exp()) * linear(normed, w.up).array();
    rows.noalias() += gate * w.down.transpose();
  }
}

}  // namespace detail

/// Runs `tokens`, which stand at `first_position` and on, through the model. Returns their hidden
/// states [tokens, width] after the last norm.
inline matrix forward(model const& m, std::span<int const> tokens, int first_position,
                      layer_attention const& attend) {
  auto const& c = m.config;
  int const n = static_cast<int>(tokens.size()), dim = c.head_dim();
  detail::rotation const turn(c, first_position, n);
  matrix x(n, c.width);
  for (int i = 0; i < n; ++i) x.row(i) = m.embedding.row(tokens[static_cast<std::size_t>(i)]);
  matrix mixed(n, c.heads * dim);
  for (int l = 0; l < c.layers; ++l) {
    layer_weights const& w = m.layers[static_cast<std::size_t>(l)];
    matrix const normed = detail::rms_norm(x, w.attention_norm, c.norm_epsilon);
    matrix q = detail::linear(normed, w.q), k = detail::linear(normed, w.k);
    matrix const v = detail::linear(normed, w.v);
    detail::rope(q, turn);
    detail::rope(k, turn);
    float const *const qs = q.data(), *const ks = k.data(), *const vs = v.data();
    attend({l, omnisparse::view_tokens_first(qs, {1, c.heads, n, dim}),
            omnisparse::view_tokens_first(ks, {1, c.kv_heads, n, dim}),
            omnisparse::view_tokens_first(vs, {1, c.kv_heads, n, dim}),
            omnisparse::view_tokens_first(mixed.data(), {1, c.heads, n, dim})});
    x.noalias() += mixed * w.attention_out.transpose();
    detail::feed_forward(x, w, c.norm_epsilon);
  }
  return detail::rms_norm(x, m.output_norm, c.norm_epsilon);
}

/// The token that the model finds most likely after the last of these hidden states.
inline int most_likely_next(model const& m, matrix const& hidden) {
  Eigen::Index best = 0;
  (m.embedding * hidden.bottomRows(1).transpose()).col(0).maxCoeff(&best);
  return static_cast<int>(best);
}

/// exp of the mean negative log-likelihood of the tokens that follow positions `from`, `from` + 1,
/// ..., the last but one. A language model's quality; lower is better.
inline double perplexity(model const& m, matrix const& hidden, std::span<int const> tokens,
                         int from) {
  constexpr Eigen::Index piece = 256;
  Eigen::Index const end = static_cast<Eigen::Index>(tokens.size()) - 1;
  double sum = 0;
  for (Eigen::Index at = from; at < end; at += piece) {
    matrix const states = hidden.middleRows(at, std::min(piece, end - at));
    matrix const logits = detail::linear(states, m.embedding);
    for (Eigen::Index i = 0; i < logits.rows(); ++i) {
      float const top = logits.row(i).maxCoeff();
      double const mass = (logits.row(i).array() - top).exp().cast<double>().sum();
      sum += std::log(mass) + top - logits(i, tokens[static_cast<std::size_t>(at + i + 1)]);
    }
  }
  return end > from ? std::exp(sum / static_cast<double>(end - from)) : 0.0;
}

}  // namespace smollm
