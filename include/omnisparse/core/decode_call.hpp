/// @file
/// The tensors of one decode step.
#pragma once

#include <omnisparse/core/call.hpp>

namespace omnisparse {

/// One row a sequence: row b of q reads the cache's sequence `sequences(b)`, or b where null.
template <class T, class Space>
struct decode_call {
  tensor_view<T const, Space> q = {};               ///< [batch, q_heads, 1, dim]
  tensor_view<T, Space> out = {};                   ///< as q
  lse_view<T, Space> lse = {};                      ///< [batch, q_heads, 1], may be null
  tensor_view<int const, Space, 1> sequences = {};  ///< [batch], may be null
  softmax_scale scale = {};

  OMNISPARSE_HD constexpr int sequence(int b) const noexcept {
    return sequences.is_null() ? b : sequences(b);
  }
};

}  // namespace omnisparse
