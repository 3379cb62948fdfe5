/// @file
/// One attention call on the CPU backend, compared with both oracles, its surroundings guarded.
#pragma once

#include "oracle.hpp"

#include <omnisparse/attention.hpp>
#include <omnisparse/testing/laws.hpp>
#include <omnisparse/testing/plans.hpp>

#include <doctest/doctest.h>

#include <cstring>
#include <string>

namespace testing_support {

using namespace omnisparse;

inline std::string describe(attention_shape const& s, near_field const& near, mask limit,
                            int chunk_rows, std::uint64_t seed) {
  return "B " + std::to_string(s.batch) + " H " + std::to_string(s.q_heads) + "/" +
         std::to_string(s.kv_heads) + " N " + std::to_string(s.q_tokens) + "/" +
         std::to_string(s.kv_tokens) + " D " + std::to_string(s.dim) + " window " +
         std::to_string(near.window) + " sinks " + std::to_string(near.sinks) +
         (limit == mask::full ? " full" : " causal") + " chunk " + std::to_string(chunk_rows) +
         " seed " + std::to_string(seed);
}

/// Runs `plan` on the fast path with poisoned workspace and outputs, in memory of the given order
/// with padding, and compares with the reference and with the mask oracle. `slack` widens the
/// largest error.
template <class T>
void check_run(testing::tensors<T> const& t, plan_view<host> const& plan, near_field const& near,
               mask limit, inputs<host> const& in, bool tokens_first, std::string const& what,
               double slack = 1, softmax_scale scale = {}) {
  attention_shape const& s = t.shape;
  auto const fast = attention{backend::cpu{}}.with(near).with(limit).with(scale);
  auto const slow = attention{backend::reference{}}.with(near).with(limit).with(scale);

  // The same values in other memory: [B, N, H, D] with four elements between rows.
  int const row = s.dim + 4;
  auto const copy = [&](tensor_view<T const> const& x, std::vector<T>& memory) {
    std::int64_t const heads = x.extent(1), tokens = x.extent(2);
    memory.assign(static_cast<std::size_t>(s.batch * heads * tokens * row),
                  static_cast<T>(__builtin_nanf("")));
    tensor_view<T> const y =
        tokens_first ? tensor_view<T>(memory.data(), {s.batch, x.extent(1), x.extent(2), s.dim},
                                      {tokens * heads * row, row, heads * row, 1})
                     : tensor_view<T>(memory.data(), {s.batch, x.extent(1), x.extent(2), s.dim},
                                      {tokens * heads * row, tokens * row, row, 1});
    for (int b = 0; b < s.batch; ++b) {
      for (int h = 0; h < heads; ++h) {
        for (int i = 0; i < tokens; ++i) {
          for (int d = 0; d < s.dim; ++d) y(b, h, i, d) = x(b, h, i, d);
        }
      }
    }
    return y;
  };
  std::vector<T> qm, km, vm, om;
  auto const q = copy(t.q_view(), qm), k = copy(t.k_view(), km), v = copy(t.v_view(), vm);
  auto const out = copy(t.q_view(), om);
  std::vector<T> const pattern(om.size(), static_cast<T>(-77.f));
  om = pattern;
  testing::result<T> r(s), oracle(s);
  std::size_t const bytes = fast.template workspace_bytes<T>(s);
  std::vector<unsigned char> memory(bytes + 64, 0xff);
  REQUIRE_MESSAGE(
      fast.run(q, k, v, plan, out, r.lses, workspace_view<>{memory.data(), bytes}, in).ok(), what);
  for (std::size_t n = bytes; n < memory.size(); ++n) REQUIRE_MESSAGE(memory[n] == 0xff, what);
  std::size_t at = 0;
  for (int b = 0; b < s.batch; ++b) {
    for (int h = 0; h < s.q_heads; ++h) {
      for (int i = 0; i < s.q_tokens; ++i) {
        for (int d = 0; d < s.dim; ++d) {
          r.out[at++] = out(b, h, i, d);
          out(b, h, i, d) = static_cast<T>(-77.f);
        }
      }
    }
  }
  // Between the rows nothing was written.
  REQUIRE_MESSAGE(std::memcmp(om.data(), pattern.data(), om.size() * sizeof(T)) == 0, what);
  REQUIRE(slow.run(t.q_view(), t.k_view(), t.v_view(), plan, oracle.out_view, oracle.lses,
                   workspace<>{}, in)
              .ok());
  auto d = testing::compare(r.out, oracle.out);
  d.largest /= slack;
  CHECK_MESSAGE(testing::within_rule<T>(d),
                what << ": largest " << d.largest << " cosine " << d.cosine);
  for (std::size_t n = 0; n < r.lse.size(); ++n) {
    double const x = static_cast<double>(r.lse[n]), y = static_cast<double>(oracle.lse[n]);
    bool const number = !is_nan(x) && !is_nan(y);  // flags may let a comparison take NaN for one
    REQUIRE_MESSAGE((number && (x == y || std::abs(x - y) <= 1e-5 * (1 + std::abs(y)))),
                    what << ": lse " << x << " for " << y);
  }
  if (s.q_tokens * s.kv_tokens > 40000) return;
  std::vector<double> independent;
  for (int b = 0; b < s.batch; ++b) {
    auto const extent = extent_of(s, in, b);
    for (int h = 0; h < s.q_heads; ++h) {
      oracle::matrix o;
      Eigen::VectorXd lse;
      auto const m = oracle::mask_of(plan, near.window, near.sinks, limit == mask::causal, b, h,
                                     extent.q_tokens, extent.kv_tokens);
      oracle::attend<T>(t.q_view(), t.k_view(), t.v_view(), b, h, h / s.group(), m, o, lse,
                        scale.value);
      for (Eigen::Index i = 0; i < o.rows(); ++i) {
        for (Eigen::Index j = 0; j < o.cols(); ++j) independent.push_back(o(i, j));
      }
    }
  }
  auto e = testing::compare(r.out, independent);
  e.largest /= slack;
  CHECK_MESSAGE(testing::within_rule<T>(e), what << ": against the mask oracle " << e.largest);
}

}  // namespace testing_support
