/// @file
/// The model's numbers and weights, read from the safetensors file that the Python side writes.
#pragma once

#include "../common/safetensors.hpp"

#include <Eigen/Core>
#include <nlohmann/json.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace smollm {

/// Row-major, as in the file: a weight is [out, in], activations are [tokens, channels].
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using row_vector = Eigen::RowVectorXf;

/// What the forward pass has to know besides the weights.
struct model_config {
  int layers = 0;
  int heads = 0;
  int kv_heads = 0;
  int width = 0;       ///< channels of the residual stream
  int hidden = 0;      ///< channels inside the feed-forward block
  int vocabulary = 0;  ///< tokens the model knows
  int context = 0;     ///< tokens it was trained on at most
  double rope_base = 0;
  float norm_epsilon = 0;

  int head_dim() const noexcept { return width / heads; }
};

/// One transformer layer: pre-norm attention, then a pre-norm gated feed-forward block.
struct layer_weights {
  row_vector attention_norm, feed_norm;  ///< [width]
  matrix q, k, v;                        ///< [heads D, width], twice [kv_heads D, width]
  matrix attention_out;                  ///< [width, heads D]
  matrix gate, up, down;                 ///< twice [hidden, width], [width, hidden]
};

/// A Llama-architecture language model whose embedding is also its output matrix.
struct model {
  model_config config;
  matrix embedding;  ///< [vocabulary, width]
  row_vector output_norm;
  std::vector<layer_weights> layers;
};

namespace detail {

/// Reads the file's "config" and refuses numbers that no Llama model has.
inline model_config read_config(safetensors::file const& file) {
  auto const text = file.metadata().find("config");
  if (text == file.metadata().end()) file.fail("its metadata has no \"config\"");
  model_config config;
  try {
    auto const json = nlohmann::json::parse(text->second);
    auto const count = [&](char const* name) {
      auto const n = json.at(name).get<std::int64_t>();
      if (n < 1 || n > 1 << 24) file.fail(std::string("its config has an unusable ") + name);
      return static_cast<int>(n);
    };
    config.layers = count("layers");
    config.heads = count("heads");
    config.kv_heads = count("kv_heads");
    config.width = count("width");
    config.hidden = count("hidden");
    config.vocabulary = count("vocabulary");
    config.context = count("context");
    config.rope_base = json.at("rope_base").get<double>();
    config.norm_epsilon = json.at("norm_epsilon").get<float>();
  } catch (nlohmann::json::exception const&) {
    file.fail("its config is not the JSON object that the converter writes");
  }
  if (config.width % (2 * config.heads) != 0 || config.heads % config.kv_heads != 0 ||
      !(config.rope_base > 1) || !(config.norm_epsilon > 0)) {
    file.fail(
        "its config describes no Llama model: heads must divide width into even parts and "
        "be a multiple of kv_heads");
  }
  return config;
}

/// A weight matrix of exactly these extents.
inline matrix read_matrix(safetensors::file& file, std::string const& name, int rows, int columns) {
  auto const values = file.floats(file.at(name, {rows, columns}));
  return Eigen::Map<matrix const>(values.data(), rows, columns);
}

/// The weights of a norm.
inline row_vector read_vector(safetensors::file& file, std::string const& name, int size) {
  auto const values = file.floats(file.at(name, {size}));
  return Eigen::Map<row_vector const>(values.data(), size);
}

}  // namespace detail

/// Reads a whole model, widened to float. Throws `safetensors::error` for a file that is damaged or
/// holds another kind of model.
inline model load_model(std::filesystem::path const& path) {
  safetensors::file file(path);
  model m;
  m.config = detail::read_config(file);
  auto const& c = m.config;
  int const q_width = c.heads * c.head_dim(), kv_width = c.kv_heads * c.head_dim();
  m.embedding = detail::read_matrix(file, "token_embd.weight", c.vocabulary, c.width);
  m.output_norm = detail::read_vector(file, "output_norm.weight", c.width);
  for (int l = 0; l < c.layers; ++l) {
    auto const name = [l](char const* part) {
      return "blk." + std::to_string(l) + "." + part + ".weight";
    };
    auto const weight = [&](char const* part, int rows, int columns) {
      return detail::read_matrix(file, name(part), rows, columns);
    };
    m.layers.push_back({.attention_norm = detail::read_vector(file, name("attn_norm"), c.width),
                        .feed_norm = detail::read_vector(file, name("ffn_norm"), c.width),
                        .q = weight("attn_q", q_width, c.width),
                        .k = weight("attn_k", kv_width, c.width),
                        .v = weight("attn_v", kv_width, c.width),
                        .attention_out = weight("attn_output", c.width, q_width),
                        .gate = weight("ffn_gate", c.hidden, c.width),
                        .up = weight("ffn_up", c.hidden, c.width),
                        .down = weight("ffn_down", c.width, c.hidden)});
  }
  return m;
}

}  // namespace smollm
