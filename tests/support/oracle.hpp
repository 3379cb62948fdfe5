/// @file
/// An oracle that shares no code with the library: a boolean mask and Eigen in double.
#pragma once

#include <omnisparse/plan/plan.hpp>

#include <Eigen/Dense>

#include <cmath>
#include <cstdlib>

namespace oracle {

using matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic>;

/// mask(i, j) of head (b, h) by the definition, written out again.
inline matrix mask_of(omnisparse::plan_view<omnisparse::host> const& plan, int window, int sinks,
                      bool causal, int b, int h, int rows, int keys) {
  matrix m = matrix::Zero(plan.shape.q_tokens, plan.shape.kv_tokens);
  int const g = h / (plan.shape.q_heads / plan.shape.kv_heads);
  for (int i = 0; i < rows; ++i) {
    int const position = keys - rows + i;
    auto const kind = plan.rows_at(b, h)[i];
    for (int j = 0; j < keys; ++j) {
      if (causal && j > position) continue;
      bool seen =
          j < sinks || std::abs(position - j) < window || kind == omnisparse::row_class::rescued;
      if (!seen && kind == omnisparse::row_class::active) {
        int const c = i / plan.chunk_rows;
        for (int n = 0; n < plan.kept_counts[plan.list(b, c, g)]; ++n) {
          seen = seen || plan.kept_at(b, c, g)[n] == j;
        }
      }
      m(i, j) = seen ? 1 : 0;
    }
  }
  return m;
}

/// out [Nq, D] and lse [Nq] of one head under a mask; empty rows give 0 and -inf. `scale` is the
/// factor on q . k, 0 for 1 / sqrt D.
template <class T>
void attend(omnisparse::tensor_view<T const> const& q, omnisparse::tensor_view<T const> const& k,
            omnisparse::tensor_view<T const> const& v, int b, int h, int g, matrix const& mask,
            matrix& out, Eigen::VectorXd& lse, double scale = 0) {
  auto const load = [b](auto const& x, int head) {
    matrix m(x.extent(2), x.extent(3));
    for (int i = 0; i < x.extent(2); ++i) {
      for (int d = 0; d < x.extent(3); ++d) m(i, d) = static_cast<double>(x(b, head, i, d));
    }
    return m;
  };
  if (!(scale > 0)) scale = 1 / std::sqrt(static_cast<double>(q.extent(3)));
  matrix logits = load(q, h) * load(k, g).transpose() * scale;
  matrix const values = load(v, g);
  out = matrix::Zero(q.extent(2), q.extent(3));
  lse = Eigen::VectorXd::Constant(q.extent(2), -INFINITY);
  for (Eigen::Index i = 0; i < logits.rows(); ++i) {
    double top = -INFINITY, sum = 0;
    for (Eigen::Index j = 0; j < logits.cols(); ++j) {
      if (mask(i, j) > 0) top = std::max(top, logits(i, j));
    }
    for (Eigen::Index j = 0; j < logits.cols(); ++j) {
      if (mask(i, j) > 0) sum += std::exp(logits(i, j) - top);
    }
    if (!(sum > 0)) continue;
    lse(i) = top + std::log(sum);
    for (Eigen::Index j = 0; j < logits.cols(); ++j) {
      if (mask(i, j) > 0) out.row(i) += std::exp(logits(i, j) - lse(i)) * values.row(j);
    }
  }
}

}  // namespace oracle
