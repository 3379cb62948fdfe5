/// @file
/// SmolLM2 under sparse attention: token ids in, measurements out. demo.py drives it.
#include "../common/safetensors_writer.hpp"
#include "forward.hpp"
#include "measure.hpp"
#include "model.hpp"
#include "policies.hpp"
#include "request.hpp"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <fstream>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

/// The command line.
struct options {
  std::string weights, request, result = "result.json", dump_to = "layer%.safetensors";
  std::vector<std::string> policies = {"full", "published", "local_first", "band"};
  smollm::policy_options policy;
  int new_tokens = 48;
  std::vector<int> dump_layers;
  std::string dump_dtype = "F32";
};

/// The values of a view as [heads, tokens, D] without gaps.
std::vector<float> contiguous(omnisparse::tensor_view<float const> const& view) {
  std::vector<float> values;
  values.reserve(static_cast<std::size_t>(view.size()));
  for (int head = 0; head < view.extent(1); ++head) {
    for (int i = 0; i < view.extent(2); ++i) {
      float const* const row = view.at(0, head, i);
      values.insert(values.end(), row, row + view.extent(3));
    }
  }
  return values;
}

/// Writes q [1, Hq, N, D], k and v [1, Hkv, N, D] of one layer, q and k after RoPE, as T.
template <class T>
void write_layer(smollm::layer_tensors const& t, std::string const& dtype,
                 std::string const& path) {
  std::vector<T> values[3];
  safetensors::writer file;
  auto const add = [&](char const* name, auto const& view, std::vector<T>& narrow) {
    auto const wide = contiguous(view);
    for (float const x : wide) narrow.push_back(static_cast<T>(x));
    file.add(name, dtype, {1, view.extent(1), view.extent(2), view.extent(3)},
             std::as_bytes(std::span(std::as_const(narrow))));
  };
  add("q", t.q, values[0]);
  add("k", t.k, values[1]);
  add("v", t.v, values[2]);
  file.save(path);
}

/// Writes q, k, v of some layers of the dense model; a '%' in the path is the layer's number.
void dump_layers(smollm::model const& m, std::vector<int> const& document, options const& o) {
  int const last = *std::max_element(o.dump_layers.begin(), o.dump_layers.end());
  if (last >= m.config.layers) {
    throw std::runtime_error("--dump-layer: the model has layers 0 to " +
                             std::to_string(m.config.layers - 1));
  }
  if (o.dump_layers.size() > 1 && o.dump_to.find('%') == std::string::npos) {
    throw std::runtime_error("--dump-to needs a '%' for the layer's number: several are dumped");
  }
  omnisparse::attention const dense{omnisparse::backend::cpu{}};
  omnisparse::workspace<> memory;
  smollm::forward(m, document, 0, [&](smollm::layer_tensors const& t) {
    if (t.layer > last) return;  // nothing more is wanted
    if (std::count(o.dump_layers.begin(), o.dump_layers.end(), t.layer) > 0) {
      std::string path = o.dump_to;
      if (auto const at = path.find('%'); at != std::string::npos) {
        path.replace(at, 1, std::to_string(t.layer));
      }
      if (o.dump_dtype == "BF16") write_layer<omnisparse::bfloat16>(t, o.dump_dtype, path);
      else write_layer<float>(t, o.dump_dtype, path);
    }
    auto const shape = omnisparse::shape_of(t.q, t.k);
    if (memory.bytes() == 0) memory = omnisparse::workspace<>(dense.workspace_bytes(shape));
    omnisparse::or_throw(dense(t.q, t.k, t.v, t.out, memory));
  });
}

/// Everything after the command line.
void run(options const& o) {
  smollm::model const m = smollm::load_model(o.weights);
  smollm::request const r = smollm::read_request(o.request, m.config, o.new_tokens);
  if (!o.dump_layers.empty()) return dump_layers(m, r.document, o);
  int const tokens = static_cast<int>(r.document.size());
  int const most_tokens = tokens + static_cast<int>(r.question.size()) + o.new_tokens;
  std::vector<smollm::measurement> measured;
  smollm::head_of_layer drawn;
  for (std::string const& name : o.policies) {
    std::fprintf(stderr, "%s: reading %d tokens\n", name.c_str(), tokens);
    double const start = smollm::detail::seconds();
    smollm::runner const policy = smollm::runner_of(name, o.policy, m.config, tokens, most_tokens);
    measured.push_back(smollm::measure(m, policy, r, o.new_tokens));
    if (name == "local_first") drawn = smollm::most_varied_head(measured.back());
    std::fprintf(stderr, "%s: done in %.1f s\n", name.c_str(), smollm::detail::seconds() - start);
  }
  auto results = nlohmann::ordered_json::array();
  for (smollm::measurement const& seen : measured) {
    results.push_back({{"row", smollm::row_of(seen)},
                       {"heads", smollm::heads_of(seen)},
                       {"picture", smollm::picture_of(seen, drawn)},
                       {"answer", seen.answer}});
  }
  nlohmann::ordered_json const result = {{"tokens", tokens}, {"results", results}};
  std::ofstream file(o.result);
  file << result << '\n';
  file.close();
  if (!file) throw std::runtime_error("the result could not be written to " + o.result);
}

}  // namespace

int main(int argc, char** argv) {
  options o;
  CLI::App app(
      "SmolLM2 under sparse attention: token ids in, measurements out. demo.py drives it.");
  app.add_option("--weights", o.weights, "the model, as demo.py converts it")->required();
  app.add_option("--request", o.request, "JSON: document, question (token ids), end (token id)")
      ->required();
  app.add_option("--result", o.result, "JSON to write");
  app.add_option("--policy", o.policies, "full, published, local_first, band")->delimiter(',');
  app.add_option("--recall", o.policy.recall)->check(CLI::Range(0.0, 1.0));
  app.add_option("--epsilon", o.policy.epsilon)->check(CLI::Range(0.0, 1.0));
  app.add_option("--least", o.policy.least)->check(CLI::Range(0.0, 1.0));
  app.add_option("--window", o.policy.window, "0: the preset's")->check(CLI::Range(0, 1 << 20));
  app.add_option("--budget", o.policy.budget, "tokens a list; 0: by recall")
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--chunk", o.policy.chunk_rows, "rows per list; 0: the preset's")
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--new-tokens", o.new_tokens)->check(CLI::Range(0, 4096));
  app.add_option("--dump-layer", o.dump_layers,
                 "write q, k, v of these layers of the dense model and stop")
      ->delimiter(',')
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--dump-to", o.dump_to, "'%' is the layer's number");
  app.add_option("--dump-dtype", o.dump_dtype)->check(CLI::IsMember({"F32", "BF16"}));
  try {
    app.parse(argc, argv);
  } catch (CLI::ParseError const& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  try {
    run(o);
  } catch (std::exception const& e) {
    std::fprintf(stderr, "smollm: %s\n", e.what());
    return 2;
  }
  return 0;
}
