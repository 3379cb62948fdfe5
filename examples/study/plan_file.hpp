/// @file
/// Plans as byte masks in a safetensors file: rows [B, Hq, Nq] (0 lazy, 1 active, 2 rescued) and
/// kept [B, chunks, Hkv, Nkv] (0 or 1). The metadata tells how the plan is to be read: chunk_rows,
/// window, sinks (decimal) and mask (causal or full).
#pragma once

#include "../common/safetensors.hpp"
#include "../common/safetensors_writer.hpp"

#include "options.hpp"

#include <omnisparse/core/math.hpp>
#include <omnisparse/plan/plan.hpp>

#include <charconv>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

namespace study {

/// Writes a plan that was made with this near field and mask.
inline void write_plan(omnisparse::plan_view<omnisparse::host> const& plan,
                       omnisparse::near_field const& near, omnisparse::mask limit,
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
  file.note("window", std::to_string(near.window));
  file.note("sinks", std::to_string(near.sinks));
  file.note("mask", limit == omnisparse::mask::full ? "full" : "causal");
  file.save(path);
}

/// A count of the metadata, or nothing where it is not there.
inline std::optional<int> noted_count(safetensors::file& file, std::string const& key) {
  auto const note = file.metadata().find(key);
  if (note == file.metadata().end()) return {};
  std::string const& text = note->second;
  int count = -1;
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error != std::errc{} || end != text.data() + text.size() || count < 0) {
    file.fail("its metadata " + key + " is no count");
  }
  return count;
}

/// What both the metadata and the command line may say, and neither may contradict.
template <class Value>
void settle(safetensors::file& file, std::string const& option, std::optional<Value>& given,
            std::optional<Value> const& noted) {
  if (given && noted && *given != *noted) {
    file.fail(option + " differs from what the plan was made with, as its metadata says: leave " +
              option + " out");
  }
  if (noted) given = noted;
}

/// The rows per list of a plan with this many lists a head: as noted or asked for, else where only
/// one count fits.
inline int rows_per_list(safetensors::file& file, std::optional<int> const& asked,
                         std::int64_t lists, int q_tokens) {
  using omnisparse::ceil_div;
  std::int64_t const rows = q_tokens;
  if (asked && *asked > 0 && ceil_div<std::int64_t>(rows, *asked) == lists) return *asked;
  if (asked == 0 && lists <= 1) return omnisparse::larger(1, q_tokens);
  std::string const found = "its " + std::to_string(lists) + " lists a head ";
  std::string const remedy =
      ": write the rows per list as the metadata 'chunk_rows', or give --chunk";
  std::string const wanted = " " + std::to_string(q_tokens) + " rows";
  if (asked) file.fail(found + "do not fit" + wanted + " in lists of " + std::to_string(*asked));
  if (lists == 1 || (lists == 0 && rows == 0)) return omnisparse::larger(1, q_tokens);
  if (lists < 1 || lists > rows) file.fail(found + "do not fit" + wanted + remedy);
  std::int64_t const least = ceil_div(rows, lists), most = (rows - 1) / (lists - 1);
  if (least != most || ceil_div(rows, least) != lists) {
    file.fail(found + "fit" + wanted + " in more than one way, or none" + remedy);
  }
  return static_cast<int>(least);
}

/// Reads a plan for a call of `shape`, and puts the rows per list, near field and mask that it was
/// made with into `o`. What its metadata does not say the options must; what both say must agree.
inline omnisparse::attention_plan<omnisparse::host> read_plan(
    options& o, omnisparse::attention_shape const& shape) {
  safetensors::file file(*o.plan_in);
  auto const& rows = file.at("rows", {shape.batch, shape.q_heads, shape.q_tokens});
  auto const& kept = file.at("kept", {shape.batch, -1, shape.kv_heads, shape.kv_tokens});
  settle(file, "--window", o.window, noted_count(file, "window"));
  settle(file, "--sinks", o.sinks, noted_count(file, "sinks"));
  if (!o.window || !o.sinks) {
    file.fail(
        "it does not say which near field it was made with: write the metadata 'window' and "
        "'sinks', or give --window and --sinks");
  }
  std::optional<std::string> noted_mask;
  if (auto const note = file.metadata().find("mask"); note != file.metadata().end()) {
    noted_mask = note->second;
    if (*noted_mask != "causal" && *noted_mask != "full") {
      file.fail("its metadata mask is neither 'causal' nor 'full'");
    }
  }
  settle(file, "--mask", o.mask, noted_mask);
  auto const noted_rows = noted_count(file, "chunk_rows");
  bool const one_list = o.chunk == 0 && noted_rows && *noted_rows >= shape.q_tokens;
  if (one_list) o.chunk = noted_rows;  // 0 asks for one list, and that is what there is
  settle(file, "--chunk", o.chunk, noted_rows);
  int const chunk_rows = rows_per_list(file, o.chunk, kept.extents[1], shape.q_tokens);
  o.chunk = chunk_rows;
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
