/// @file
/// What the tests of the attend paths share: shapes with lengths, their tensors, a path's memory.
#pragma once

#include "device.cuh"

namespace testing_support {

/// A shape, the chunks of its plans, and the lengths of its sequences, or none.
struct shape_case {
  attention_shape shape;  ///< dim is set by the test
  int chunk_rows;
  std::vector<int> q_lengths, kv_lengths;

  attention_shape with_dim(int dim) const {
    attention_shape s = shape;
    s.dim = dim;
    return s;
  }
};

/// Random tensors of a case. What lies beyond a sequence's length is memory of somebody else: NaN.
template <class T>
testing::tensors<T> tensors_of(shape_case const& c, int dim, float sharpness = 1.f) {
  attention_shape const s = c.with_dim(dim);
  auto t = testing::random_tensors<T>(s, 7, sharpness);
  auto const spoil = [&](std::vector<T>& x, std::vector<int> const& lengths, int heads,
                         int tokens) {
    for (std::size_t n = 0; n < x.size() && !lengths.empty(); ++n) {
      auto const token = static_cast<int>(n / static_cast<std::size_t>(s.dim));
      int const length = lengths[static_cast<std::size_t>(token / tokens / heads)];
      if (token % tokens >= length) x[n] = static_cast<T>(__builtin_nanf(""));
    }
  };
  spoil(t.q, c.q_lengths, s.q_heads, s.q_tokens);
  spoil(t.k, c.kv_lengths, s.kv_heads, s.kv_tokens);
  spoil(t.v, c.kv_lengths, s.kv_heads, s.kv_tokens);
  return t;
}

/// Rows that do not exist are lazy in every plan.
inline void make_missing_rows_lazy(plan_view<host> const& plan, inputs<host> const& in) {
  attention_shape const& s = plan.shape;
  for (int b = 0; b < s.batch; ++b) {
    for (int h = 0; h < s.q_heads; ++h) {
      for (int i = extent_of(s, in, b).q_tokens; i < s.q_tokens; ++i) {
        plan.rows_at(b, h)[i] = row_class::lazy;
      }
    }
  }
}

/// A path's memory as Memory::take(arena, arguments...) lays it out, poisoned.
template <class Memory>
struct path_memory {
  poisoned bytes;
  Memory m;

  template <class... Arguments>
  explicit path_memory(Arguments const&... arguments) : bytes(count(arguments...)) {
    detail::arena arena(bytes.data(), bytes.bytes());
    m = Memory::take(arena, arguments...);
    REQUIRE(arena.fits());
  }

 private:
  template <class... Arguments>
  static std::size_t count(Arguments const&... arguments) {
    detail::arena arena;
    Memory::take(arena, arguments...);
    return arena.needed();
  }
};

/// The lse of stages that look at keys only against that of the whole call.
inline void check_same_lse(std::vector<float> const& whole, std::vector<float> const& keys_only,
                           float within, std::string const& what) {
  bool same = true;
  for (std::size_t n = 0; n < whole.size(); ++n) {
    same = same && (whole[n] == keys_only[n] ||
                    std::abs(whole[n] - keys_only[n]) <= within * (1.f + std::abs(whole[n])));
  }
  CHECK_MESSAGE(same, what << ": lse of keys only");
}

}  // namespace testing_support
