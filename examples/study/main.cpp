// For researchers with a model of their own: q, k, v in a safetensors file; plan and attend under
// any policy; outputs, plan and numbers out.
#include "command_line.hpp"
#include "cuda.hpp"
#include "heeded.hpp"
#include "plan_file.hpp"

#include <nlohmann/json.hpp>

#include <chrono>
#include <cstdio>
#include <limits>
#include <utility>

namespace {

using namespace omnisparse;
using nlohmann::json;
using study::outcome, study::planning, study::tensors;

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The dtype that q, k and v have in the file.
std::string dtype_of(safetensors::file const& file) {
  std::string const dtype = file.at("q").dtype;
  if (file.at("k").dtype != dtype || file.at("v").dtype != dtype) {
    file.fail("q, k and v must have one dtype");
  }
  return dtype;
}

template <class T>
tensors<T> read_tensors(safetensors::file& file) {
  auto const& q = file.at("q", {-1, -1, -1, -1});
  auto const extent = [&](std::size_t d) {
    if (q.extents[d] > std::numeric_limits<int>::max())
      file.fail("an extent of q is above 2^31 - 1");
    return q.extents[d];
  };
  auto const& k = file.at("k", {extent(0), -1, -1, extent(3)});
  auto const& v = file.at("v", k.extents);
  if (k.extents[1] > extent(1) || k.extents[2] > std::numeric_limits<int>::max()) {
    file.fail("k has more heads than q or too many tokens");
  }
  tensors<T> t;
  t.shape = {static_cast<int>(q.extents[0]), static_cast<int>(q.extents[1]),
             static_cast<int>(k.extents[1]), static_cast<int>(extent(2)),
             static_cast<int>(k.extents[2]), static_cast<int>(q.extents[3])};
  t.q = file.values<T>(q);
  t.k = file.values<T>(k);
  t.v = file.values<T>(v);
  return t;
}

/// Plans (or takes the given plan) and attends, on the CPU.
template <class T, class Attention>
outcome<T> measure(Attention const& attend, planning by, tensors<T> const& t,
                   attention_plan<host> given) {
  attention_shape const& s = t.shape;
  or_throw(attend.template can_run<T>(s));
  int const q_extents[4] = {s.batch, s.q_heads, s.q_tokens, s.dim};
  int const kv_extents[4] = {s.batch, s.kv_heads, s.kv_tokens, s.dim};
  int const row_extents[3] = {s.batch, s.q_heads, s.q_tokens};
  outcome<T> got;
  got.near = attend.policies().near;
  got.limit = attend.policies().limit;
  got.out.resize(t.q.size());
  got.lse.resize(t.q.size() / static_cast<std::size_t>(s.dim));
  got.plan = by == planning::given ? std::move(given) : attend.make_plan(s);
  if (!got.plan) throw std::runtime_error("there is not enough memory for the plan");
  tensor_view const q(t.q.data(), q_extents), k(t.k.data(), kv_extents), v(t.v.data(), kv_extents);
  workspace<> const memory(attend.template workspace_bytes<T>(s));
  double const start = seconds();
  if (by == planning::everything) study::fill_dense(got.plan);
  if (by == planning::by_policies) or_throw(attend.plan(q, k, got.plan, memory));
  double const planned = seconds();
  or_throw(attend.run(q, k, v, got.plan, tensor_view(got.out.data(), q_extents),
                      lse_view<T>(got.lse.data(), row_extents), memory));
  got.plan_seconds = planned - start;
  got.attend_seconds = seconds() - planned;
  return got;
}

/// Prints the summary and writes what was asked for.
template <class T>
void report(outcome<T> const& got, study::options const& o, attention_shape const& s) {
  plan_summary const sum = summarize(got.plan, got.near, got.limit);
  or_throw(sum.checked);
  std::fputs(to_string(sum).c_str(), stdout);
  std::printf("plan %.3f ms, attend %.3f ms, visible %.2f %% of the mask's pairs\n",
              1e3 * got.plan_seconds, 1e3 * got.attend_seconds,
              sum.mask_pairs > 0 ? 100.0 * static_cast<double>(sum.visible_pairs) /
                                       static_cast<double>(sum.mask_pairs)
                                 : 0.0);
  if (o.plan_out) study::write_plan(got.plan, got.near, got.limit, *o.plan_out);
  if (o.out) {
    std::vector<float> const wide(got.out.begin(), got.out.end());
    safetensors::writer file;
    file.add("out", {s.batch, s.q_heads, s.q_tokens, s.dim}, wide);
    file.add("lse", {s.batch, s.q_heads, s.q_tokens}, got.lse);
    file.save(*o.out);
  }
  if (!o.json) return;
  json heads = json::array(), kv_heads = json::array();
  for (auto const& h : sum.heads) {
    heads.push_back({{"active", h.active}, {"rescued", h.rescued}, {"density", h.density}});
  }
  for (auto const& h : sum.kv_heads) kv_heads.push_back({{"kept", h.kept}, {"recall", h.recall}});
  json const report = {{"policy", o.policy_name()},
                       {"backend", o.backend},
                       {"shape",
                        {{"batch", s.batch},
                         {"q_heads", s.q_heads},
                         {"kv_heads", s.kv_heads},
                         {"q_tokens", s.q_tokens},
                         {"kv_tokens", s.kv_tokens},
                         {"dim", s.dim}}},
                       {"active", sum.active},
                       {"rescued", sum.rescued},
                       {"density", sum.density},
                       {"kept", sum.kept},
                       {"recall", sum.recall},
                       {"visible_pairs", sum.visible_pairs},
                       {"mask_pairs", sum.mask_pairs},
                       {"plan_seconds", got.plan_seconds},
                       {"attend_seconds", got.attend_seconds},
                       {"heads", heads},
                       {"kv_heads", kv_heads}};
  common::write_file(*o.json, [&](std::ostream& file) { file << report.dump(1) << '\n'; });
}

template <class T>
void with_dtype(study::options o, safetensors::file& file) {
  tensors<T> const t = read_tensors<T>(file);
  attention_plan<host> given;
  if (o.plan_in) given = study::read_plan(o, t.shape);
  outcome<T> got;
  auto const measured = [&](auto const& attend, planning by) {
    got = measure(attend, by, t, std::move(given));
  };
  if (o.backend == "cuda") {
    got = study::run_on_gpu(o, t, std::move(given));
  } else if (o.backend == "reference") {
    study::compose(backend::reference{}, o, t.shape.kv_tokens, measured);
  } else {
    study::compose(backend::cpu{.threads = o.threads.value_or(0)}, o, t.shape.kv_tokens, measured);
  }
  report(got, o, t.shape);
}

}  // namespace

int main(int argc, char** argv) {
  study::options o;
  CLI::App app{"Plans and attends on q, k, v of your own model."};
  study::declare(app, o);
  try {
    app.parse(argc, argv);
  } catch (CLI::ParseError const& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  try {
    study::check_heeded(o);
    study::check_files(o);
    safetensors::file file(o.input);
    std::string const dtype = dtype_of(file);
    if (dtype == "F32") with_dtype<float>(o, file);
    else if (dtype == "F16") with_dtype<half>(o, file);
    else if (dtype == "BF16") with_dtype<bfloat16>(o, file);
    else file.fail("q is " + dtype + "; only F32, F16 and BF16 can be studied");
  } catch (std::exception const& e) {
    std::fprintf(stderr, "study: %s\n", e.what());
    return 2;
  }
  return 0;
}
