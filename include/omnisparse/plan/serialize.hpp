/// @file
/// Saving a plan and loading it again.
#pragma once

#include <omnisparse/core/status.hpp>
#include <omnisparse/plan/check.hpp>
#include <omnisparse/plan/plan.hpp>

#include <cstring>
#include <string>
#include <string_view>

namespace omnisparse {

namespace detail {
inline namespace OMNISPARSE_TARGET {

// The file: this header, row classes, counts, recalls, then each list at its own length.
// Little-endian, as every machine that runs this library.
struct plan_header {
  char magic[8] = {'o', 'm', 'n', 'i', 'p', 'l', 'a', 'n'};
  std::int32_t format = 1;
  std::int32_t batch = 0, q_heads = 0, kv_heads = 0, q_tokens = 0, kv_tokens = 0, dim = 0;
  std::int32_t chunk_rows = 0, capacity = 0;
};
static_assert(sizeof(plan_header) == 44);

}  // namespace OMNISPARSE_TARGET
}  // namespace detail

inline namespace OMNISPARSE_TARGET {

/// The bytes of a host plan: one byte a row, 4 a kept token, 8 a list, 44 of header. None for a
/// plan that `check_plan` refuses.
inline std::string to_bytes(plan_view<host> const& plan) {
  if (!check_plan(plan, plan.shape).ok()) return {};
  attention_shape const& s = plan.shape;
  detail::plan_header header;
  header.batch = s.batch, header.q_heads = s.q_heads, header.kv_heads = s.kv_heads;
  header.q_tokens = s.q_tokens, header.kv_tokens = s.kv_tokens, header.dim = s.dim;
  header.chunk_rows = plan.chunk_rows, header.capacity = plan.capacity;
  auto const lists = static_cast<std::size_t>(plan.list_count());
  std::string bytes;
  auto const add = [&](void const* data, std::size_t size) {
    bytes.append(static_cast<char const*>(data), size);
  };
  add(&header, sizeof header);
  add(plan.rows, static_cast<std::size_t>(plan.row_count()));
  add(plan.kept_counts, lists * sizeof(int));
  for (std::size_t l = 0; l < lists; ++l) {
    float const recall = plan.recalls == nullptr ? -1.f : plan.recalls[l];
    add(&recall, sizeof recall);
  }
  for (std::int64_t l = 0; l < plan.list_count(); ++l) {
    add(plan.kept + l * plan.capacity, static_cast<std::size_t>(plan.kept_counts[l]) * sizeof(int));
  }
  return bytes;
}

/// Reads what `to_bytes` wrote into a fresh plan. Truncated, inconsistent or foreign bytes are
/// refused and leave `plan` as it was. So are few bytes that ask for much memory: for lists of more
/// than 256 MiB and of 8192 times the bytes. Allocates the plan.
inline status from_bytes(std::string_view bytes, attention_plan<host>& plan) noexcept {
  auto const refuse = [] {
    return status{status_code::damaged_data,
                  "omnisparse: these bytes are no whole saved plan: save it again with to_bytes"};
  };
  detail::plan_header header;
  if (bytes.size() < sizeof header) return refuse();
  std::memcpy(&header, bytes.data(), sizeof header);
  detail::plan_header const fresh;
  if (std::memcmp(header.magic, fresh.magic, sizeof fresh.magic) != 0 ||
      header.format != fresh.format || header.batch < 0 || header.q_heads < 0 ||
      header.kv_heads < 1 || header.q_tokens < 0 || header.kv_tokens < 0 || header.dim < 0 ||
      header.chunk_rows < 1 || header.capacity < 0) {
    return refuse();
  }
  // Every row and list takes room in the bytes, so sizes that they cannot hold are refused before
  // anything is allocated. In double: no product can overflow.
  auto const count = [](std::int32_t n) { return static_cast<double>(n); };
  double const rows = count(header.batch) * count(header.q_heads) * count(header.q_tokens);
  double const lists = count(header.batch) * count(header.kv_heads) *
                       count(ceil_div(header.q_tokens, header.chunk_rows));
  double const room = static_cast<double>(bytes.size() - sizeof header);
  if (rows + 8 * lists > room || 4 * lists * count(header.capacity) > larger(0x1p28, 8192 * room)) {
    return refuse();
  }
  attention_plan<host> read({header.batch, header.q_heads, header.kv_heads, header.q_tokens,
                             header.kv_tokens, header.dim},
                            chunk{header.chunk_rows}, header.capacity);
  if (!read) return refuse();
  plan_view<host> const view = read.view();
  char const* at = bytes.data() + sizeof header;
  char const* const end = bytes.data() + bytes.size();
  auto const take = [&](void* to, std::int64_t size) {
    if (size < 0 || end - at < size) return false;
    if (size > 0) std::memcpy(to, at, static_cast<std::size_t>(size));
    at += size;
    return true;
  };
  if (!take(view.rows, view.row_count()) || !take(view.kept_counts, view.list_count() * 4) ||
      !take(view.recalls, view.list_count() * 4)) {
    return refuse();
  }
  for (std::int64_t l = 0; l < view.list_count(); ++l) {
    int const n = view.kept_counts[l];
    if (n < 0 || n > view.capacity || !take(view.kept + l * view.capacity, std::int64_t{n} * 4)) {
      return refuse();
    }
  }
  if (at != end || !check_plan(view, view.shape).ok()) return refuse();
  plan = static_cast<attention_plan<host>&&>(read);
  return {};
}

}  // namespace OMNISPARSE_TARGET
}  // namespace omnisparse
