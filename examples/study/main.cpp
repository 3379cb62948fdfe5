// For researchers with a model of their own: q, k, v in a safetensors file; plan and attend under
// any policy; outputs, plan and numbers out.
#include "options.hpp"
#include "plan_file.hpp"

#include <omnisparse/presets.hpp>

#include <nlohmann/json.hpp>

#include <chrono>
#include <cstdio>
#include <limits>

namespace {

using namespace omnisparse;
using nlohmann::json;

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class T>
struct tensors {
  attention_shape shape;
  std::vector<T> q, k, v;
};

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

/// Plans (or takes the given plan), attends, writes what was asked for.
template <class T, class Attention>
void measure(Attention const& attend, study::options const& o, tensors<T> const& t, bool dense) {
  attention_shape const& s = t.shape;
  or_throw(attend.template can_run<T>(s));
  int const q_extents[4] = {s.batch, s.q_heads, s.q_tokens, s.dim};
  int const kv_extents[4] = {s.batch, s.kv_heads, s.kv_tokens, s.dim};
  int const row_extents[3] = {s.batch, s.q_heads, s.q_tokens};
  std::vector<T> out(t.q.size());
  std::vector<float> lse(t.q.size() / static_cast<std::size_t>(s.dim));
  tensor_view const q(t.q.data(), q_extents), k(t.k.data(), kv_extents), v(t.v.data(), kv_extents);
  workspace<> memory(attend.template workspace_bytes<T>(s));
  auto plan = o.plan_in.empty() ? attend.make_plan(s) : study::read_plan(o.plan_in, s);
  if (!plan) throw std::runtime_error("there is not enough memory for the plan");
  double const planning = seconds();
  if (o.plan_in.empty() && dense) {
    auto const view = plan.view();
    std::fill_n(view.rows, view.row_count(), row_class::rescued);
    for (std::int64_t n = 0; n < view.list_count(); ++n) view.recalls[n] = 1.f;
  } else if (o.plan_in.empty()) {
    or_throw(attend.plan(q, k, plan, memory));
  }
  double const planned = seconds();
  or_throw(attend.run(q, k, v, plan, tensor_view(out.data(), q_extents),
                      lse_view<T>(lse.data(), row_extents), memory));
  double const done = seconds();
  plan_summary const sum = summarize(plan, attend.policies().near, attend.policies().limit);
  std::fputs(to_string(sum).c_str(), stdout);
  std::printf("plan %.3f ms, attend %.3f ms, visible %.2f %% of the mask's pairs\n",
              1e3 * (planned - planning), 1e3 * (done - planned),
              sum.mask_pairs > 0 ? 100.0 * static_cast<double>(sum.visible_pairs) /
                                       static_cast<double>(sum.mask_pairs)
                                 : 0.0);
  if (!o.plan_out.empty()) study::write_plan(plan, o.plan_out);
  if (!o.out.empty()) {
    std::vector<float> const wide(out.begin(), out.end());
    safetensors::writer file;
    file.add("out", {s.batch, s.q_heads, s.q_tokens, s.dim}, wide);
    file.add("lse", {s.batch, s.q_heads, s.q_tokens}, lse);
    file.save(o.out);
  }
  if (o.json.empty()) return;
  json heads = json::array(), kv_heads = json::array();
  for (auto const& h : sum.heads) {
    heads.push_back({{"active", h.active}, {"rescued", h.rescued}, {"density", h.density}});
  }
  for (auto const& h : sum.kv_heads) kv_heads.push_back({{"kept", h.kept}, {"recall", h.recall}});
  json const report = {{"policy", o.policy},
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
                       {"plan_seconds", planned - planning},
                       {"attend_seconds", done - planned},
                       {"heads", heads},
                       {"kv_heads", kv_heads}};
  std::ofstream file(o.json);
  file << report.dump(1) << '\n';
  if (!file.flush()) throw std::runtime_error(o.json + ": the file could not be written");
}

/// Puts the command line's near field, mask, chunk and budget on top of a policy.
template <class T, class Attention>
void with_options(Attention attend, study::options const& o, tensors<T> const& t) {
  near_field near = attend.policies().near;
  if (o.window >= 0) near.window = o.window;
  if (o.sinks >= 0) near.sinks = o.sinks;
  auto a = attend.with(near).with(o.mask == "full" ? mask::full : mask::causal);
  if (o.chunk >= 0) a = a.with(chunk{o.chunk});
  if (o.policy == "dense") return measure(a.with(budget::dense{}), o, t, true);
  if (o.policy == "band") return measure(a.with(budget::fixed{.count = 0}), o, t, false);
  if (o.budget == "guaranteed")
    return measure(a.with(budget::guaranteed{.recall = o.recall}), o, t, false);
  if (o.budget == "per-head")
    return measure(a.with(budget::per_head{.recall = o.recall}), o, t, false);
  if (o.budget == "fixed") return measure(a.with(budget::fixed{.count = o.tokens}), o, t, false);
  if (o.budget == "ratio") return measure(a.with(budget::ratio{.share = o.share}), o, t, false);
  if (o.budget == "dense") return measure(a.with(budget::dense{}), o, t, false);
  if (o.budget == "flattest" || o.policy == "published") {
    return measure(a.with(budget::flattest_head{.recall = o.recall}), o, t, false);
  }
  measure(a, o, t, false);
}

template <class T, class Backend>
void with_backend(Backend backend, study::options const& o, safetensors::file& file) {
  tensors<T> const t = read_tensors<T>(file);
  if (o.policy == "published") {
    return with_options(presets::published(backend, {.tau = o.tau}), o, t);
  }
  if (o.policy == "local-first") {
    return with_options(
        presets::local_first(backend, t.shape.kv_tokens, {.epsilon = o.epsilon, .least = o.least}),
        o, t);
  }
  int const window = clamped(t.shape.kv_tokens / 64, 256, 1024);
  if (o.policy == "band") {
    return with_options(
        attention{backend}.with(near_field{.window = window, .sinks = 4}).with(selector::none{}), o,
        t);
  }
  with_options(attention{backend}, o, t);
}

template <class T>
void with_dtype(study::options const& o, safetensors::file& file) {
  if (o.backend == "reference") return with_backend<T>(backend::reference{}, o, file);
  with_backend<T>(backend::cpu{}, o, file);
}

}  // namespace

int main(int argc, char** argv) {
  study::options o;
  CLI::App app{"Plans and attends on q, k, v of your own model."};
  study::declare(app, o);
  CLI11_PARSE(app, argc, argv);
  try {
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
