/// @file
/// The checks of shapes and of what a call may be given beside q, k and v, shared by all who take
/// them: attention, plans, summaries and slimming.
#pragma once

#include <omnisparse/core/near_field.hpp>
#include <omnisparse/core/overlap.hpp>
#include <omnisparse/core/shape.hpp>
#include <omnisparse/core/status.hpp>

#include <cstdint>

namespace omnisparse::detail::inline OMNISPARSE_TARGET {

inline constexpr status shape_refusal(char const* why) noexcept {
  return {status_code::invalid_shape, why};
}

// Rows, keys and lists are counted in int, some of them a few times over; bytes in 64 bits.
inline constexpr std::int64_t most_rows = std::int64_t{1} << 28;
inline constexpr int most_dim = 1 << 16;

// Is a x b x c, an extent of 0 counted as 1, no more than `most_rows`?
constexpr bool rows_fit(int a, int b, int c) noexcept {
  std::int64_t const x = larger(1, a), y = larger(1, b), z = larger(1, c);
  return x <= most_rows / y && x * y <= most_rows / z;
}

// Extents of rows, keys and heads that make sense by themselves.
constexpr status check_counts(attention_shape const& s) noexcept {
  if (s.batch < 0 || s.q_heads < 0 || s.kv_heads < 0 || s.q_tokens < 0 || s.kv_tokens < 0) {
    return shape_refusal("omnisparse: an extent of the shape is negative: give counts >= 0");
  }
  if (s.kv_heads == 0 || s.q_heads % s.kv_heads != 0) {
    return shape_refusal(
        "omnisparse: q [B, Hq, Nq, D] and k [B, Hkv, Nkv, D]: Hq must be a "
        "multiple of Hkv >= 1: repeat or drop heads");
  }
  if (!rows_fit(s.batch, s.q_heads, s.q_tokens) || !rows_fit(s.batch, s.kv_heads, s.q_tokens) ||
      !rows_fit(s.batch, s.kv_heads, s.kv_tokens)) {
    return shape_refusal(
        "omnisparse: a call takes at most 2^28 rows (B Hq Nq) and 2^28 keys (B Hkv Nkv): split it "
        "by batch, by heads or by rows");
  }
  return {};
}

// Extents that make sense by themselves.
constexpr status check_shape(attention_shape const& s) noexcept {
  if (status const bad = check_counts(s); !bad.ok()) return bad;
  if (s.dim <= 0) return shape_refusal("omnisparse: the head dimension D must be at least 1");
  if (s.dim > most_dim) {
    return shape_refusal("omnisparse: the head dimension D must be at most 65536: split the heads");
  }
  return {};
}

// Near field and mask that make sense by themselves.
constexpr status check_near(near_field const& near, mask limit) noexcept {
  if (near.window < 0 || near.sinks < 0) {
    return {status_code::invalid_option,
            "omnisparse: near_field counts tokens: window and sinks must be >= 0"};
  }
  if (limit != mask::causal && limit != mask::full) {
    return {status_code::invalid_option,
            "omnisparse: the mask is neither mask::causal nor mask::full: choose one of them"};
  }
  return {};
}

template <class V>
constexpr bool has_extents(V const& view, int a, int b, int c, int d) noexcept {
  return view.extent(0) == a && view.extent(1) == b && view.extent(2) == c && view.extent(3) == d;
}

// Can q, k, v or out be read by rows?
template <class V>
constexpr bool is_readable(V const& view) noexcept {
  return view.size() == 0 || (!view.is_null() && view.stride(V::rank - 1) == 1);
}

constexpr status stride_refusal() noexcept {
  return {status_code::invalid_view,
          "omnisparse: the strides of a view reach 2^56 bytes and more: count them in elements"};
}

// Memory of views that may be left out; their extents fit.
template <class... V>
constexpr status check_optional(V const&... views) noexcept {
  if ((... || (views.is_null() && views.size() > 0))) {
    return {status_code::invalid_view,
            "omnisparse: lse, lengths, segments or sequences have extents but no memory: point "
            "the view to it, or leave the view default-made where there is none"};
  }
  return (... && strides_fit(views)) ? status{} : stride_refusal();
}

// Lengths and segments that fit a shape.
template <class Space>
constexpr status check_inputs(inputs<Space> const& in, attention_shape const& s) noexcept {
  if ((in.q_lengths.is_given() && in.q_lengths.extent(0) != s.batch) ||
      (in.kv_lengths.is_given() && in.kv_lengths.extent(0) != s.batch)) {
    return shape_refusal("omnisparse: q_lengths and kv_lengths must be [B]: one count a sequence");
  }
  if (in.segments.is_given() &&
      (in.segments.extent(0) != s.batch || in.segments.extent(1) != s.kv_tokens)) {
    return shape_refusal("omnisparse: segments must be [B, Nkv]: one for each key");
  }
  return check_optional(in.q_lengths, in.kv_lengths, in.segments);
}

}  // namespace omnisparse::detail::inline OMNISPARSE_TARGET
