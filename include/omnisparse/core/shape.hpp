/// @file
/// The shape of one attention call, its mask, and what a call may be given beside q, k and v.
#pragma once

#include <omnisparse/core/question.hpp>
#include <omnisparse/core/status.hpp>
#include <omnisparse/core/tensor_view.hpp>

namespace omnisparse {

/// Which keys a row may see at all: those at or before its position, or every key.
enum class mask : unsigned char { causal, full };

/// The extents of one call: q [batch, q_heads, q_tokens, dim], k and v [batch, kv_heads, kv_tokens,
/// dim]. Query head h reads KV head h / group(); row i stands at kv_tokens - q_tokens + i.
struct attention_shape {
  int batch = 1;
  int q_heads = 1;
  int kv_heads = 1;
  int q_tokens = 0;
  int kv_tokens = 0;
  int dim = 64;

  OMNISPARSE_HD constexpr int group() const noexcept { return q_heads / kv_heads; }
  friend constexpr bool operator==(attention_shape const&, attention_shape const&) = default;
};

/// The shape of a call on these views. Extents are read from q and k; `check` compares the rest.
template <class Q, class K, class Space>
constexpr attention_shape shape_of(tensor_view<Q, Space> const& q,
                                   tensor_view<K, Space> const& k) noexcept {
  return {.batch = q.extent(0),
          .q_heads = q.extent(1),
          .kv_heads = k.extent(1),
          .q_tokens = q.extent(2),
          .kv_tokens = k.extent(2),
          .dim = q.extent(3)};
}

/// What a call may be given beside q, k and v; every view may be left null.
/// A sequence of a batch may be shorter than the tensors: rows at and beyond its q_length see
/// nothing (out 0, lse -inf), keys at and beyond its kv_length do not exist, and row i stands at
/// kv_length - q_length + i. Lengths outside [0, extent] count as the nearest end.
template <class Space = host>
struct inputs {
  tensor_view<int const, Space, 1> q_lengths = {};     ///< [batch], rows in use
  tensor_view<int const, Space, 1> kv_lengths = {};    ///< [batch], keys in use
  tensor_view<segment const, Space, 2> segments = {};  ///< [batch, kv_tokens]; null: all visual
};

/// One sequence of a call: how many of its rows and keys exist. `position(i)` is pos(i).
struct sequence_extent {
  int q_tokens = 0;
  int kv_tokens = 0;

  OMNISPARSE_HD constexpr int position(int row) const noexcept {
    return kv_tokens - q_tokens + row;
  }
};

/// The extents of sequence `b` of a call. Reads device memory when Space is device.
template <class Space>
OMNISPARSE_HD constexpr sequence_extent extent_of(attention_shape const& shape,
                                                  inputs<Space> const& in, int b) noexcept {
  auto const bounded = [](int n, int most) { return n < 0 ? 0 : n < most ? n : most; };
  return {in.q_lengths.is_null() ? shape.q_tokens : bounded(in.q_lengths(b), shape.q_tokens),
          in.kv_lengths.is_null() ? shape.kv_tokens : bounded(in.kv_lengths(b), shape.kv_tokens)};
}

}  // namespace omnisparse
