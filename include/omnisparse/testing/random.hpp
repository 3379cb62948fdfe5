/// @file
/// Seeded tensors for tests: noise, and noise with the structure that real attention has.
#pragma once

#include <omnisparse/core/dtype.hpp>
#include <omnisparse/core/math.hpp>
#include <omnisparse/core/shape.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace omnisparse::testing {

/// A small generator with the same numbers on every machine.
class generator {
 public:
  explicit generator(std::uint64_t seed) noexcept
      : state_(seed * 2654435769u + 88172645463325252u) {}

  std::uint64_t bits() noexcept {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  /// Uniform in [0, n), n >= 1.
  int below(int n) noexcept { return static_cast<int>(bits() % static_cast<std::uint64_t>(n)); }
  /// Uniform in [low, high].
  int between(int low, int high) noexcept { return low + below(high - low + 1); }
  /// Uniform in [-1, 1).
  float uniform() noexcept { return static_cast<float>(bits() >> 40) / 8388608.f - 1.f; }
  /// Roughly normal, variance 1.
  float normal() noexcept {
    float sum = 0;
    for (int n = 0; n < 6; ++n) sum += uniform();
    return sum * 0.7071f;
  }

 private:
  std::uint64_t state_;
};

/// q, k, v of one call, contiguous [B, H, N, D], with views of them.
template <class T>
struct tensors {
  attention_shape shape;
  std::vector<T> q, k, v;

  tensor_view<T const> q_view() const { return view(q, shape.q_heads, shape.q_tokens); }
  tensor_view<T const> k_view() const { return view(k, shape.kv_heads, shape.kv_tokens); }
  tensor_view<T const> v_view() const { return view(v, shape.kv_heads, shape.kv_tokens); }

 private:
  tensor_view<T const> view(std::vector<T> const& data, int heads, int tokens) const {
    return {data.data(), {shape.batch, heads, tokens, shape.dim}};
  }
};

inline namespace OMNISPARSE_TARGET {

/// Normal q, k, v; `sharpness` scales q, so that larger values concentrate the attention. A few
/// keys of every head are heavy columns, and the first key is a sink.
template <class T>
tensors<T> random_tensors(attention_shape const& s, std::uint64_t seed, float sharpness = 1.f) {
  generator g(seed);
  auto const count = [](int a, int b, int c, int d) {
    return static_cast<std::size_t>(a) * static_cast<std::size_t>(b) * static_cast<std::size_t>(c) *
           static_cast<std::size_t>(d);
  };
  tensors<T> t{s, {}, {}, {}};
  t.q.resize(count(s.batch, s.q_heads, s.q_tokens, s.dim));
  t.k.resize(count(s.batch, s.kv_heads, s.kv_tokens, s.dim));
  t.v.resize(t.k.size());
  for (T& x : t.q) x = static_cast<T>(sharpness * (g.normal() + 0.3f));
  for (std::size_t n = 0; n < t.k.size(); ++n) {
    std::size_t const token = n / static_cast<std::size_t>(s.dim);
    bool const heavy =
        token % 37 == 5 || token % static_cast<std::size_t>(larger(1, s.kv_tokens)) == 0;
    t.k[n] = static_cast<T>(g.normal() + (heavy ? 0.6f : 0.f));
  }
  for (T& x : t.v) x = static_cast<T>(g.normal());
  return t;
}

}  // namespace OMNISPARSE_TARGET
}  // namespace omnisparse::testing
