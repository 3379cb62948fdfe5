/// @file
/// What to read and what to ask, as token ids: the file that demo.py writes.
#pragma once

#include "model.hpp"

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace smollm {

/// A document, a question about it, and the token that ends an answer.
struct request {
  std::vector<int> document;
  std::vector<int> question;
  int end = 0;
};

namespace detail {

/// Token ids of a JSON array; the model must know each of them.
inline std::vector<int> read_tokens(nlohmann::json const& array, char const* name, int vocabulary) {
  std::vector<int> tokens;
  for (auto const& value : array) {
    auto const token = value.get<std::int64_t>();
    if (token < 0 || token >= vocabulary) {
      throw std::runtime_error(std::string("a token of the ") + name + " is none of the " +
                               std::to_string(vocabulary) + " that the model knows");
    }
    tokens.push_back(static_cast<int>(token));
  }
  return tokens;
}

}  // namespace detail

/// Reads {"document": [ids], "question": [ids], "end": id}. Throws std::runtime_error for a file
/// that is something else, for unknown tokens, and for more than the model's context holds.
inline request read_request(std::string const& path, model_config const& config, int new_tokens) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + ": the request cannot be opened");
  request r;
  try {
    auto const json = nlohmann::json::parse(file);
    r.document = detail::read_tokens(json.at("document"), "document", config.vocabulary);
    r.question = detail::read_tokens(json.at("question"), "question", config.vocabulary);
    r.end = json.at("end").get<int>();
  } catch (nlohmann::json::exception const&) {
    throw std::runtime_error(path +
                             ": a request is a JSON object with token ids: \"document\", "
                             "\"question\", \"end\"");
  }
  if (r.document.size() < 16) throw std::runtime_error("the document needs at least 16 tokens");
  auto const all = r.document.size() + r.question.size() + static_cast<std::size_t>(new_tokens);
  if (all > static_cast<std::size_t>(config.context)) {
    throw std::runtime_error("document, question and answer would take " + std::to_string(all) +
                             " tokens, more than the model's context of " +
                             std::to_string(config.context) +
                             ": lower --max-tokens or --new-tokens");
  }
  return r;
}

}  // namespace smollm
