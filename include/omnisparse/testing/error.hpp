/// @file
/// How far an output may be from the oracle: largest error, and a tilt everywhere.
#pragma once

#include <omnisparse/core/dtype.hpp>
#include <omnisparse/core/math.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace omnisparse::testing {

/// The distance of two arrays of one length.
struct distance {
  double largest = 0;  ///< largest absolute difference; infinite where only one is NaN or infinite
  double cosine = 0;   ///< 1 - cosine of the angle between them
  double magnitude = 0;  ///< largest absolute value of the oracle
};

/// Compares `values` with `oracle`, element by element. Equal infinities are equal.
template <class T, class U>
distance compare(std::vector<T> const& values, std::vector<U> const& oracle) {
  distance d;
  double dot = 0, xx = 0, yy = 0;
  for (std::size_t n = 0; n < oracle.size(); ++n) {
    double const x = static_cast<double>(values[n]), y = static_cast<double>(oracle[n]);
    if (!is_finite(x) || !is_finite(y)) {
      // By bits: flags may let == take NaN for equal to anything.
      if (__builtin_bit_cast(std::uint64_t, x) == __builtin_bit_cast(std::uint64_t, y) &&
          !is_nan(x)) {
        continue;
      }
      d.largest = detail::unknown(std::numeric_limits<double>::infinity());
      return d;
    }
    d.largest = std::max(d.largest, std::abs(x - y));
    d.magnitude = std::max(d.magnitude, std::abs(y));
    dot += x * y, xx += x * x, yy += y * y;
  }
  d.cosine = xx > 0 && yy > 0 ? 1 - dot / std::sqrt(xx * yy) : (xx == yy ? 0 : 1);
  return d;
}

/// One rounding step of T at 1.
template <class T>
constexpr double rounding_step() noexcept {
  if (std::is_same_v<T, double>) return 0x1p-52;
  if (std::is_same_v<T, float>) return 0x1p-23;
  return std::is_same_v<T, half> ? 0x1p-10 : 0x1p-7;
}

/// The error rule: at most one rounding step of the output's type at the largest output, twice,
/// plus what accumulation costs; and a cosine distance below 1e-5.
template <class T>
bool within_rule(distance const& d) noexcept {
  double const accumulation = std::is_same_v<T, double> ? 1e-13 : 4e-6;
  return d.largest <= (rounding_step<T>() + accumulation) * std::max(1.0, d.magnitude) &&
         d.cosine < 1e-5;
}

}  // namespace omnisparse::testing
