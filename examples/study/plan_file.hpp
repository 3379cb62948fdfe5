/// @file
/// Plans as byte masks in a safetensors file: rows [B, Hq, Nq] (0 lazy, 1 active, 2 rescued) and
/// kept [B, chunks, Hkv, Nkv] (0 or 1).
#pragma once

#include "../common/safetensors.hpp"
#include "../common/safetensors_writer.hpp"

#include <omnisparse/plan/plan.hpp>

#include <string>
#include <vector>

namespace study {

/// Writes a plan. Metadata names the rows per list.
inline void write_plan(omnisparse::plan_view<omnisparse::host> const& plan,
                       std::string const& path) {
  auto const& s = plan.shape;
  auto const keys = static_cast<std::size_t>(s.kv_tokens);
  std::vector<std::uint8_t> rows(static_cast<std::size_t>(plan.row_count()));
  for (std::size_t n = 0; n < rows.size(); ++n) rows[n] = static_cast<std::uint8_t>(plan.rows[n]);
  std::vector<std::uint8_t> kept(static_cast<std::size_t>(plan.list_count()) * keys, 0);
  for (std::int64_t list = 0; list < plan.list_count(); ++list) {
    for (int n = 0; n < plan.kept_counts[list]; ++n) {
      kept[static_cast<std::size_t>(list) * keys +
           static_cast<std::size_t>(plan.kept[list * plan.capacity + n])] = 1;
    }
  }
  safetensors::writer file;
  file.add("rows", {s.batch, s.q_heads, s.q_tokens}, rows);
  file.add("kept", {s.batch, plan.chunks(), s.kv_heads, s.kv_tokens}, kept);
  file.note("chunk_rows", std::to_string(plan.chunk_rows));
  file.save(path);
}

/// Reads a plan for a call of `shape`. The rows per list come from the metadata; without it, from
/// the number of lists when only one size fits them.
inline omnisparse::attention_plan<omnisparse::host> read_plan(
    std::string const& path, omnisparse::attention_shape const& shape) {
  safetensors::file file(path);
  auto const& rows = file.at("rows", {shape.batch, shape.q_heads, shape.q_tokens});
  auto const& kept = file.at("kept", {shape.batch, -1, shape.kv_heads, shape.kv_tokens});
  auto const lists = kept.extents[1];
  int chunk_rows = 0;
  if (auto const note = file.metadata().find("chunk_rows"); note != file.metadata().end()) {
    try {
      chunk_rows = std::stoi(note->second);
    } catch (std::exception const&) {
      file.fail("its metadata chunk_rows is no number");
    }
  } else if (lists > 0 && lists <= shape.q_tokens) {
    chunk_rows = static_cast<int>(omnisparse::ceil_div<std::int64_t>(shape.q_tokens, lists));
  }
  if (chunk_rows < 1 || omnisparse::ceil_div(shape.q_tokens, chunk_rows) != lists) {
    file.fail("its " + std::to_string(lists) + " lists a head do not fit " +
              std::to_string(shape.q_tokens) +
              " rows: write the rows per list as the metadata "
              "'chunk_rows'");
  }
  omnisparse::attention_plan<omnisparse::host> plan(shape, omnisparse::chunk{chunk_rows});
  if (!plan) file.fail("there is not enough memory for this plan");
  auto const view = plan.view();
  auto const classes = file.values<std::uint8_t>(rows);
  for (std::size_t n = 0; n < classes.size(); ++n) {
    if (classes[n] > 2) file.fail("'rows' holds a class other than 0, 1 and 2");
    view.rows[n] = static_cast<omnisparse::row_class>(classes[n]);
  }
  auto const flags = file.values<std::uint8_t>(kept);
  for (std::int64_t list = 0; list < view.list_count(); ++list) {
    view.recalls[list] = -1.f;
    for (int j = 0; j < shape.kv_tokens; ++j) {
      auto const flag = flags[static_cast<std::size_t>(list * shape.kv_tokens + j)];
      if (flag > 1) file.fail("'kept' holds a flag other than 0 and 1");
      if (flag == 1) view.kept[list * view.capacity + view.kept_counts[list]++] = j;
    }
  }
  return plan;
}

}  // namespace study
