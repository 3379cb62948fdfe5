/// @file
/// What a plan saves, in a few numbers, printable.
#pragma once

#include <omnisparse/core/check_shape.hpp>
#include <omnisparse/core/near_field.hpp>
#include <omnisparse/core/status.hpp>
#include <omnisparse/plan/check.hpp>
#include <omnisparse/plan/plan.hpp>

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace omnisparse {

inline namespace OMNISPARSE_TARGET {

/// The numbers of a plan. Means over the batch; per head where a head's name stands beside.
struct plan_summary {
  struct of_head {
    double active = 0;   ///< share of the query head's rows that are active or rescued
    double rescued = 0;  ///< share that is rescued
    double density = 0;  ///< visible pairs over the pairs that the mask alone allows
  };
  struct of_kv_head {
    double kept = 0;     ///< mean tokens of a list
    double recall = -1;  ///< mean estimated recall of the lists; -1: not measured
  };
  std::vector<of_head> heads;                                          ///< [q_heads]
  std::vector<of_kv_head> kv_heads;                                    ///< [kv_heads]
  double active = 0, rescued = 0, density = 0, kept = 0, recall = -1;  ///< means of the above
  std::int64_t visible_pairs = 0;  ///< (row, key) pairs that attention computes
  std::int64_t mask_pairs = 0;     ///< pairs that the mask alone allows
  status checked = {};  ///< why plan, near field or inputs were refused: then nothing was counted
};

/// The keys that a row of a class sees: near and its list, or everything.
/// Cost: three binary searches in the list.
inline std::int64_t visible_keys(row_class kind, near_field const& near, mask limit,
                                 sequence_extent extent, int row, int const* kept,
                                 int kept_count) noexcept {
  int const position = extent.position(row);
  key_range const all = near_field::visible(position, extent.kv_tokens, limit);
  if (kind == row_class::rescued) return all.size();
  key_range const sinks = near.sinks_of(position, extent.kv_tokens, limit);
  key_range const window = near.window_of(position, extent.kv_tokens, limit);
  std::int64_t seen = sinks.size() + window.size();
  if (kind == row_class::lazy) return seen;
  auto const below = [&](int key) {
    int low = 0, high = kept_count;
    while (low < high) {
      int const middle = low + (high - low) / 2;
      if (kept[middle] < key) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  seen += below(all.end) - below(sinks.end);
  if (window.size() > 0) seen -= below(window.end) - below(window.begin);
  return seen;
}

/// Counts what a host plan makes visible. A plan that `check_plan` refuses, a near field or inputs
/// that a call would refuse give an empty summary, whose `checked` has the sentence. O(entries +
/// rows log capacity). Allocates the summary.
inline plan_summary summarize(plan_view<host> const& plan, near_field const& near, mask limit,
                              inputs<host> const& in = {}) {
  attention_shape const& shape = plan.shape;
  plan_summary sum;
  sum.checked = check_plan(plan, shape);
  if (sum.checked.ok()) sum.checked = detail::check_near(near, limit);
  if (sum.checked.ok()) sum.checked = detail::check_inputs(in, shape);
  if (!sum.checked.ok()) return sum;
  sum.heads.resize(static_cast<std::size_t>(shape.q_heads));
  sum.kv_heads.resize(static_cast<std::size_t>(shape.kv_heads));
  for (int h = 0; h < shape.q_heads; ++h) {
    std::int64_t head_rows = 0, active = 0, rescued = 0, seen = 0, allowed = 0;
    for (int b = 0; b < shape.batch; ++b) {
      sequence_extent const extent = extent_of(shape, in, b);
      for (int i = 0; i < extent.q_tokens; ++i) {
        row_class const kind = plan.rows_at(b, h)[i];
        int const c = i / plan.chunk_rows, g = h / shape.group();
        seen += visible_keys(kind, near, limit, extent, i, plan.kept_at(b, c, g),
                             plan.kept_counts[plan.list(b, c, g)]);
        allowed += near_field::visible(extent.position(i), extent.kv_tokens, limit).size();
        active += kind != row_class::lazy;
        rescued += kind == row_class::rescued;
      }
      head_rows += extent.q_tokens;
    }
    auto const share = [](std::int64_t part, std::int64_t whole) {
      return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
    };
    auto& head = sum.heads[static_cast<std::size_t>(h)];
    head = {share(active, head_rows), share(rescued, head_rows), share(seen, allowed)};
    sum.active += head.active / shape.q_heads;
    sum.rescued += head.rescued / shape.q_heads;
    sum.density += head.density / shape.q_heads;
    sum.visible_pairs += seen;
    sum.mask_pairs += allowed;
  }
  std::int64_t const lists = std::int64_t{shape.batch} * plan.chunks();
  double recall = 0;
  std::int64_t measured_lists = 0;
  for (int g = 0; g < shape.kv_heads && lists > 0; ++g) {
    auto& head = sum.kv_heads[static_cast<std::size_t>(g)];
    double head_recall = 0;
    std::int64_t measured = 0;
    for (int b = 0; b < shape.batch; ++b) {
      for (int c = 0; c < plan.chunks(); ++c) {
        std::int64_t const list = plan.list(b, c, g);
        head.kept += static_cast<double>(plan.kept_counts[list]) / static_cast<double>(lists);
        if (plan.recalls == nullptr || plan.recalls[list] < 0) continue;
        head_recall += static_cast<double>(plan.recalls[list]);
        ++measured;
      }
    }
    if (measured > 0) head.recall = head_recall / static_cast<double>(measured);
    sum.kept += head.kept / shape.kv_heads;
    recall += head_recall;
    measured_lists += measured;
  }
  if (measured_lists > 0) sum.recall = recall / static_cast<double>(measured_lists);
  return sum;
}

/// The summary as a small table of text, a line per query head; the sentence of a refused one.
inline std::string to_string(plan_summary const& sum) {
  if (!sum.checked.ok()) return std::string(sum.checked.message) + "\n";
  char line[160];
  std::string text = "head  active  rescued  density  kept   recall\n";
  auto const add = [&](char const* name, double active, double rescued, double density, double kept,
                       double recall) {
    std::snprintf(line, sizeof line, "%4s  %5.1f%%  %6.1f%%  %6.1f%%  %6.0f ", name, 100 * active,
                  100 * rescued, 100 * density, kept);
    text += line;
    if (recall < 0) std::snprintf(line, sizeof line, "%6s\n", "-");
    else std::snprintf(line, sizeof line, "%5.1f%%\n", 100 * recall);
    text += line;
  };
  std::size_t const group = sum.kv_heads.empty() ? 1 : sum.heads.size() / sum.kv_heads.size();
  for (std::size_t h = 0; h < sum.heads.size(); ++h) {
    auto const& head = sum.heads[h];
    auto const& kv = sum.kv_heads[h / group];
    add(std::to_string(h).c_str(), head.active, head.rescued, head.density, kv.kept, kv.recall);
  }
  add("all", sum.active, sum.rescued, sum.density, sum.kept, sum.recall);
  return text;
}

}  // namespace OMNISPARSE_TARGET
}  // namespace omnisparse
