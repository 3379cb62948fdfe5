/// @file
/// A real language model through the library: reads a document with several kinds of attention, asks
/// about it, and writes down what each kind saved and lost. `demo.py` is its usual caller.
#include "dump.hpp"
#include "forward.hpp"
#include "job.hpp"
#include "layer_attention.hpp"
#include "model.hpp"
#include "result.hpp"
#include "setting.hpp"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

/// The command line.
struct options {
  fs::path model, tokens, report, dump;
  std::vector<std::string> rows = {"full", "published", "local_first", "band"};
  std::vector<int> dump_layers;
  int new_tokens = 48;
  bool no_recall = false;
};

/// Prefills the document with one kind of attention, answers the question, and measures both.
smollm::row_result run_row(smollm::model const& model, smollm::job const& job,
                           smollm::setting const& how, options const& wanted) {
  auto const& c = model.config;
  int const tokens = static_cast<int>(job.document.size());
  omnisparse::attention_shape const shape{1, c.heads, c.kv_heads, tokens, tokens, c.head_dim()};
  smollm::progress say(how.label());
  return smollm::with_attention(how, [&](auto attend) {
    smollm::layer_by_layer layers(attend, shape, !wanted.no_recall);
    smollm::row_result row;
    row.policy = how.policy(), row.label = how.label();
    smollm::matrix const hidden = smollm::timed(row.prefill_s, [&] {
      return smollm::forward(model, job.document, 0, [&](smollm::layer_tensors const& t) {
        layers(t);
        say("prefill, layer", t.layer + 1, c.layers);
      });
    });
    row.prefill_s -= layers.off_clock_s;
    row.perplexity = smollm::perplexity(model, hidden, job.document, tokens / 2);
    row.attention_s = layers.attention_s, row.plan_s = layers.plan_s;
    std::tie(row.recall_mean, row.recall_p1) = layers.recall();
    row.layers = std::move(layers.layers);
    row.average_layers();
    smollm::save_plans(wanted.report / (how.policy() + ".plan.safetensors"), layers.plans);
    return row;
  });
}

/// Writes q, k and v of the wanted layers, as full attention makes them.
void dump_layers(smollm::model const& model, smollm::job const& job, options const& wanted) {
  auto const& c = model.config;
  int const tokens = static_cast<int>(job.document.size());
  omnisparse::attention_shape const shape{1, c.heads, c.kv_heads, tokens, tokens, c.head_dim()};
  smollm::layer_by_layer layers(smollm::dense_attention, shape, false);
  smollm::forward(model, job.document, 0, [&](smollm::layer_tensors const& t) {
    auto const& list = wanted.dump_layers;
    bool const chosen = list.empty() || std::find(list.begin(), list.end(), t.layer) != list.end();
    if (chosen) smollm::save_layer(wanted.dump, t);
    layers(t);
  });
}

/// Everything after the command line has been read.
void run(options const& wanted) {
  std::vector<smollm::setting> const settings(wanted.rows.begin(), wanted.rows.end());
  std::fprintf(stderr, "reading the model\n");
  smollm::model const model = smollm::load_model(wanted.model);
  smollm::job const job = smollm::read_job(wanted.tokens, model.config, wanted.new_tokens);
  fs::create_directories(wanted.report);
  if (!wanted.dump.empty()) dump_layers(model, job, wanted);
  nlohmann::ordered_json report = {{"document_tokens", job.document.size()},
                                   {"rows", nlohmann::ordered_json::array()}};
  for (auto const& how : settings) {
    report["rows"].push_back(smollm::to_json(run_row(model, job, how, wanted)));
  }
  fs::path const path = wanted.report / "report.json";
  std::ofstream file(path);
  file << report.dump(1) << '\n';
  file.close();
  if (!file) throw smollm::usage_error(path.string() + ": the file could not be written");
}

}  // namespace

int main(int argc, char** argv) {
  options wanted;
  CLI::App app("A language model that reads a document with several kinds of attention.");
  app.add_option("--model", wanted.model, "weights, a safetensors file")->required();
  app.add_option("--tokens", wanted.tokens, "document, question and stop tokens, a JSON file")
      ->required();
  app.add_option("--report", wanted.report, "folder to write the report's numbers to")->required();
  app.add_option("--row", wanted.rows,
                 "a row of the table: full, published, local_first or band, and its options, as in "
                 "'local_first least=0.6 window=128'");
  app.add_option("--new-tokens", wanted.new_tokens, "most tokens of an answer; 0: none")
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--dump", wanted.dump, "folder to write q, k and v of layers to");
  app.add_option("--dump-layers", wanted.dump_layers, "which layers; all when left out");
  app.add_flag("--no-recall", wanted.no_recall, "spare the dense calls that find the true recall");
  try {
    app.parse(argc, argv);
  } catch (CLI::ParseError const& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  try {
    run(wanted);
  } catch (std::exception const& e) {
    std::fprintf(stderr, "smollm: %s\n", e.what());
    return 2;
  }
  return 0;
}
