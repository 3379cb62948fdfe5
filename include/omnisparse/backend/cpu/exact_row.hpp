/// @file
/// One row by the definition, in a type that no logit or sum of finite elements leaves: what the
/// fast paths fall back on where theirs was left.
#pragma once

#include <omnisparse/core/dtype.hpp>
#include <omnisparse/core/math.hpp>
#include <omnisparse/core/merge.hpp>
#include <omnisparse/core/softmax_scale.hpp>

#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

/// The type of exact sums over elements of type T: long double for double, else double.
template <class T>
using exact_t = std::conditional_t<std::is_same_v<T, double>, long double, double>;

/// scale q . k over elements of k that stand `step` apart. Never inlined: a row asks again for the
/// same logit, and to the last bit it must be the same.
template <class T>
#if defined(__GNUC__)
[[gnu::noinline]]
#endif
exact_t<T> exact_logit(T const* q, T const* k, std::ptrdiff_t step, int dim,
                       softmax_scale scale) noexcept {
  using E = exact_t<T>;
  E dot = 0;
  for (int d = 0; d < dim; ++d) dot += static_cast<E>(q[d]) * static_cast<E>(k[d * step]);
  return scale.logit(dot, dim);
}

/// A double that is NaN, infinite or finite as `x` is, and of its sign.
template <class E>
double kind_of(E x) noexcept {
  if constexpr (std::numeric_limits<E>::max_exponent > std::numeric_limits<double>::max_exponent) {
    constexpr E far_below = [] {
      E small = 1;
      for (int n = std::numeric_limits<E>::max_exponent; n > 512; n -= 64) small /= E(0x1p64);
      return small;
    }();
    return static_cast<double>(x * far_below);
  } else {
    return static_cast<double>(x);
  }
}

/// exp(x - high) for a finite or empty x <= a finite high; NaN for the rest.
template <class E>
E exact_weight(E x, E high) noexcept {
  if (!is_finite(kind_of(high)) || is_nan(kind_of(x))) {
    return static_cast<E>(detail::not_a_number<double>());
  }
  return is_empty(kind_of(x)) ? E(0) : std::exp(x - high);
}

/// One softmax of q [dim] over the keys that for_each_key(use) gives to use(k, step, v): elements
/// of k stand `step` apart, those of v are neighbours. Gives each element of the output to
/// store(d, value) and returns the log-sum-exp, nats. No keys: 0 and -inf. NaN in q or a key: NaN
/// in all; in a value: in its column. Allocates nothing; cost: 2 + ceil(D / 64) passes over the
/// keys.
template <class T, class ForEachKey, class Store>
accumulator_t<T> exact_row(T const* q, int dim, softmax_scale scale, ForEachKey const& for_each_key,
                           Store const& store) noexcept {
  using A = accumulator_t<T>;
  using E = exact_t<T>;
  auto const logit = [&](T const* k, std::ptrdiff_t step) {
    return exact_logit(q, k, step, dim, scale);
  };
  E high = static_cast<E>(empty_lse<double>()), total = 0;
  int keys = 0;
  for_each_key([&](T const* k, std::ptrdiff_t step, T const*) {
    E const x = logit(k, step);
    if (!is_nan(kind_of(x))) high = larger(high, x);
    ++keys;
  });
  for_each_key([&](T const* k, std::ptrdiff_t step, T const*) {
    total += exact_weight(logit(k, step), high);
  });
  constexpr int part = 64;
  for (int first = 0; first < dim; first += part) {
    int const columns = smaller(part, dim - first);
    E sums[part] = {};
    for_each_key([&](T const* k, std::ptrdiff_t step, T const* v) {
      E const share = exact_weight(logit(k, step), high) / total;
      for (int d = 0; d < columns; ++d) sums[d] += share * static_cast<E>(v[first + d]);
    });
    for (int d = 0; d < columns; ++d) store(first + d, static_cast<A>(sums[d]));
  }
  if (keys == 0) return empty_lse<A>();
  // -inf would say that nothing was seen.
  constexpr E most = static_cast<E>(std::numeric_limits<A>::max());
  E const lse = high + std::log(total);
  return is_finite(kind_of(lse)) ? static_cast<A>(clamped(lse, -most, most)) : static_cast<A>(lse);
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
