/// @file
/// Is this plan one that `run` may follow?
#pragma once

#include <omnisparse/core/check_shape.hpp>
#include <omnisparse/core/overlap.hpp>
#include <omnisparse/core/status.hpp>
#include <omnisparse/plan/plan.hpp>

#include <cstddef>
#include <cstdint>

namespace omnisparse {

namespace detail {
inline namespace OMNISPARSE_TARGET {

// Calls visit(part, bytes) for each part of a plan's memory; null parts too. Its frame is sound.
template <class Space, class Visit>
void each_part(plan_view<Space> const& plan, Visit const& visit) noexcept {
  auto const rows = static_cast<std::size_t>(plan.row_count());
  auto const lists = static_cast<std::size_t>(plan.list_count());
  visit(plan.rows, rows * sizeof(row_class));
  visit(plan.kept_counts, lists * sizeof(int));
  visit(plan.recalls, lists * sizeof(float));
  visit(plan.kept, lists * static_cast<std::size_t>(plan.capacity) * sizeof(int));
}

// What can be seen of a plan without reading its entries, in any space.
template <class Space>
constexpr status check_plan_frame(plan_view<Space> const& plan,
                                  attention_shape const& shape) noexcept {
  auto const refuse = [](char const* why) { return status{status_code::invalid_plan, why}; };
  if (!(plan.shape == shape)) {
    return refuse(
        "omnisparse: the plan was made for another shape: make it with the shape of this "
        "call's q and k");
  }
  if (status const bad = check_counts(shape); !bad.ok()) return bad;
  if (plan.chunk_rows < 1 || plan.capacity < 0 || plan.capacity > most_rows) {
    return refuse("omnisparse: a plan has chunk_rows >= 1 and a capacity in [0, 2^28]");
  }
  if ((plan.rows == nullptr && plan.row_count() > 0) ||
      (plan.kept_counts == nullptr && plan.list_count() > 0) ||
      (plan.kept == nullptr && plan.list_count() > 0 && plan.capacity > 0)) {
    return refuse(
        "omnisparse: the plan has null parts: give memory for rows, kept and "
        "kept_counts, or use attention_plan, which owns them");
  }
  return {};
}

}  // namespace OMNISPARSE_TARGET
}  // namespace detail

inline namespace OMNISPARSE_TARGET {

/// Refuses a plan that was made for another shape, has null parts, an unknown row class, or a list
/// that is too long, unsorted, repeats an entry or leaves [0, kv_tokens). Host plans only; reads
/// every entry once.
inline status check_plan(plan_view<host> const& plan, attention_shape const& shape) noexcept {
  if (status const bad = detail::check_plan_frame(plan, shape); !bad.ok()) return bad;
  auto const refuse = [](char const* why) { return status{status_code::invalid_plan, why}; };
  for (std::int64_t i = 0; i < plan.row_count(); ++i) {
    if (static_cast<unsigned char>(plan.rows[i]) > 2) {
      return refuse(
          "omnisparse: a row class of the plan is none of lazy (0), active (1), "
          "rescued (2)");
    }
  }
  for (std::int64_t l = 0; l < plan.list_count(); ++l) {
    int const count = plan.kept_counts[l];
    if (count < 0 || count > plan.capacity) {
      return refuse("omnisparse: a count of the plan lies outside [0, capacity]");
    }
    int const* const kept = plan.kept + l * plan.capacity;
    int before = -1;
    for (int n = 0; n < count; ++n) {
      if (kept[n] <= before || kept[n] >= shape.kv_tokens) {
        return refuse(
            "omnisparse: a kept list of the plan is not strictly ascending within "
            "[0, kv_tokens)");
      }
      before = kept[n];
    }
  }
  return {};
}

}  // namespace OMNISPARSE_TARGET

namespace detail {
inline namespace OMNISPARSE_TARGET {

// A plan's memory that a planner can write for this call.
template <class Space>
constexpr status check_plan_target(plan_view<Space> const& plan, attention_shape const& shape,
                                   chunk rows, inputs<Space> const& in) noexcept {
  int const wanted = rows.rows > 0 ? rows.rows : larger(1, shape.q_tokens);
  if (!(plan.shape == shape) || plan.chunk_rows != wanted) {
    return {status_code::invalid_plan,
            "omnisparse: the plan's memory was made for another shape or chunk: use "
            "attention_plan(shape, chunk) with those of this call"};
  }
  if (in.segments.is_given() && plan.capacity < shape.kv_tokens) {
    return {status_code::invalid_plan,
            "omnisparse: with segments a list must be able to hold all text tokens: give the plan "
            "a capacity of Nkv"};
  }
  if (plan.capacity < 0 || plan.capacity > most_rows) {
    return {status_code::invalid_plan, "omnisparse: the capacity of a plan is in [0, 2^28]"};
  }
  if ((plan.row_count() > 0 && plan.rows == nullptr) ||
      (plan.list_count() > 0 && (plan.kept_counts == nullptr || plan.recalls == nullptr ||
                                 (plan.capacity > 0 && plan.kept == nullptr)))) {
    return {status_code::invalid_plan,
            "omnisparse: a plan to be written needs memory for rows, kept, kept_counts and "
            "recalls: use attention_plan, which owns them"};
  }
  return {};
}

// Two plans of one frame, the second of which can be copied over the first.
template <class To, class From>
status check_plan_copy(plan_view<To> const& to, plan_view<From> const& from) noexcept {
  auto const refuse = [](char const* why) { return status{status_code::invalid_plan, why}; };
  if (!(to.shape == from.shape) || to.chunk_rows != from.chunk_rows ||
      to.capacity != from.capacity) {
    return refuse(
        "omnisparse: plans are copied between memories of one shape, chunk and capacity: make "
        "the target with those of the source");
  }
  if (status const bad = check_plan_frame(to, to.shape); !bad.ok()) return bad;
  if (status const bad = check_plan_frame(from, to.shape); !bad.ok()) return bad;
  if ((to.recalls == nullptr) != (from.recalls == nullptr)) {
    return refuse(
        "omnisparse: one of two plans to be copied has no memory for recalls: give it some, or "
        "leave them out of both");
  }
  memory_of_call memory;
  each_part(to, [&](void const* part, std::size_t bytes) { memory.writes(part, bytes); });
  each_part(from, [&](void const* part, std::size_t bytes) { memory.reads(part, bytes); });
  return memory.check(
      "omnisparse: the target of a copied plan shares memory with its source or within itself: use "
      "attention_plan, which owns its memory");
}

}  // namespace OMNISPARSE_TARGET
}  // namespace detail
}  // namespace omnisparse
