#include <omnisparse/core/dtype.hpp>
#include <omnisparse/core/math.hpp>
#include <omnisparse/core/merge.hpp>
#include <omnisparse/core/near_field.hpp>
#include <omnisparse/core/status.hpp>
#include <omnisparse/core/tensor_view.hpp>
#include <omnisparse/core/workspace.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

using namespace omnisparse;

namespace {

// The value of a 16-bit pattern, spelled out.
double slow_value(unsigned bits, int exponent_bits, int mantissa_bits) {
  int const sign = bits >> 15 & 1, bias = (1 << (exponent_bits - 1)) - 1;
  int const exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  double const mantissa =
      static_cast<double>(bits & ((1u << mantissa_bits) - 1)) / (1 << mantissa_bits);
  double const magnitude = exponent == 0 ? std::ldexp(mantissa, 1 - bias)
                           : exponent == (1 << exponent_bits) - 1
                               ? (mantissa == 0 ? INFINITY : NAN)
                               : std::ldexp(1 + mantissa, exponent - bias);
  return sign != 0 ? -magnitude : magnitude;
}

template <class T>
void check_all_patterns(int exponent_bits, int mantissa_bits) {
  double previous = 0;
  for (unsigned bits = 0; bits < 65536; ++bits) {
    T x;
    x.bits = static_cast<std::uint16_t>(bits);
    double const wanted = slow_value(bits, exponent_bits, mantissa_bits);
    double const got = static_cast<double>(static_cast<float>(x));
    if (is_nan(wanted)) {
      REQUIRE(is_nan(got));
      REQUIRE(is_nan(static_cast<float>(T(static_cast<float>(x)))));
      continue;
    }
    // Programs linked with -ffast-math take numbers below float's normal ones for 0.
    if (__FINITE_MATH_ONLY__ && std::abs(wanted) < 0x1p-125) {
      previous = wanted;
      continue;
    }
    REQUIRE(got == wanted);
    REQUIRE(T(static_cast<float>(wanted)).bits == bits);
    // Between two neighbours: to the nearer, to even on a tie.
    if (bits > 0 && bits < 0x8000 && is_finite(wanted)) {
      float const middle = static_cast<float>((previous + wanted) / 2);
      REQUIRE(T(middle).bits == (bits % 2 == 0 ? bits : bits - 1));
      REQUIRE(T(std::nextafter(middle, INFINITY)).bits == bits);
      REQUIRE(T(std::nextafter(middle, -INFINITY)).bits == bits - 1);
    }
    previous = wanted;
  }
}

}  // namespace

TEST_CASE("every 16-bit pattern converts exactly and rounds to nearest even") {
  check_all_patterns<half>(5, 10);
  check_all_patterns<bfloat16>(8, 7);
  CHECK(half(65519.f).bits == 0x7bff);
  CHECK(half(65520.f).bits == 0x7c00);
  CHECK(half(-1e30f).bits == 0xfc00);
}

TEST_CASE("a view addresses its memory, whatever its strides") {
  std::vector<int> data(2 * 3 * 4 * 5);
  for (std::size_t n = 0; n < data.size(); ++n) data[n] = static_cast<int>(n);
  tensor_view const heads_first(data.data(), {2, 3, 4, 5});
  CHECK(heads_first(1, 2, 3, 4) == ((1 * 3 + 2) * 4 + 3) * 5 + 4);
  auto const tokens_first = view_tokens_first(data.data(), {2, 3, 4, 5});
  CHECK(tokens_first(1, 2, 3, 4) == ((1 * 4 + 3) * 3 + 2) * 5 + 4);
  CHECK(heads_first.at(1, 2) == &heads_first(1, 2, 0, 0));
  tensor_view<int const> const constant = heads_first;
  CHECK(&constant(0, 0, 0, 0) == data.data());
  CHECK(tensor_view<int>{}.is_null());
  // Offsets beyond 2^31 elements.
  tensor_view<char const> const huge(nullptr, {1, 1, 1 << 20, 1 << 13});
  CHECK(huge.size() == std::int64_t{1} << 33);
  CHECK(huge.stride(2) * ((1 << 20) - 1) > std::int64_t{1} << 32);
  static_assert(!std::is_convertible_v<tensor_view<int, host>, tensor_view<int, device>>);
}

TEST_CASE("near field and candidates are the sets of the definition") {
  for (mask const limit : {mask::causal, mask::full}) {
    for (int window : {0, 1, 3, 100}) {
      for (int sinks : {0, 2, 100}) {
        near_field const near{window, sinks};
        for (int keys : {0, 1, 7}) {
          for (int position = -2; position < 9; ++position) {
            auto const all = near_field::visible(position, keys, limit);
            auto const window_keys = near.window_of(position, keys, limit);
            auto const sink_keys = near.sinks_of(position, keys, limit);
            for (int j = 0; j < keys; ++j) {
              bool const visible = limit == mask::full || j <= position;
              CHECK(all.contains(j) == visible);
              bool const in = visible && (j < sinks || std::abs(position - j) < window);
              CHECK((window_keys.contains(j) || sink_keys.contains(j)) == in);
              CHECK_FALSE((window_keys.contains(j) && sink_keys.contains(j)));
              if (visible) CHECK(near.contains(j, position, keys, limit) == in);
            }
          }
          for (int first = -2; first < 7; ++first) {
            for (int last = first; last < 7; ++last) {
              auto const far = candidates_of(near, first, last, keys, limit);
              int count = 0;
              for (int j = 0; j < keys; ++j) {
                bool wanted = false;
                for (int p = first; p <= last; ++p) {
                  wanted = wanted || (near_field::visible(p, keys, limit).contains(j) &&
                                      !near.contains(j, p, keys, limit));
                }
                CHECK(far.contains(j) == wanted);
                if (wanted) CHECK(far.key(count++) == j);
              }
              CHECK(far.size() == count);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("merging is associative and empty sets are neutral") {
  double const none = empty_lse<double>();
  CHECK(merge_lse(none, none) == none);
  CHECK(merge_lse(2.0, none) == 2.0);
  CHECK(merge_lse(none, 2.0) == 2.0);
  CHECK(merge_lse(1e4, -1e4) == 1e4);
  CHECK(merge_lse(merge_lse(0.1, 2.0), -3.0) ==
        doctest::Approx(merge_lse(0.1, merge_lse(2.0, -3.0))));
  CHECK(merge_weight(none, none) == 0);
  double a[2] = {1, 2}, b[2] = {5, -1}, lse = 0.5;
  merge_row(a, lse, b, none, 2);
  CHECK(a[0] == 1);
  CHECK(lse == 0.5);
  merge_row(a, lse, b, 0.5, 2);
  CHECK(a[0] == doctest::Approx(3));
  CHECK(a[1] == doctest::Approx(0.5));
  CHECK(lse == doctest::Approx(0.5 + std::log(2.0)));
  double empty[2] = {0, 0}, empty_value = none;
  merge_row(empty, empty_value, b, none, 2);
  CHECK(empty[0] == 0);
  CHECK(empty_value == none);
}

TEST_CASE_TEMPLATE("merging shows NaN, reads nothing of empty sets and keeps what is finite", A,
                   float, double) {
  A const nan = static_cast<A>(__builtin_nan("")), none = empty_lse<A>();
  A const huge = std::numeric_limits<A>::max(), inf = -none;
  struct part {
    A out, lse;
  };
  auto const merged = [](part a, part const& b) {
    merge_row(&a.out, a.lse, &b.out, b.lse, 1);
    return a;
  };
  for (A const unwritten : {nan, inf, huge}) {
    CHECK(merged({3, 1}, {unwritten, none}).out == 3);
    CHECK(merged({3, 1}, {unwritten, none}).lse == 1);
    CHECK(merged({unwritten, none}, {3, 1}).out == 3);
    CHECK(merged({unwritten, none}, {3, 1}).lse == 1);
    CHECK(merged({unwritten, none}, {unwritten, none}).out == 0);
    CHECK(is_empty(merged({unwritten, none}, {unwritten, none}).lse));
  }
  for (part const& other : {part{3, 1}, part{3, none}, part{3, inf}, part{nan, nan}}) {
    CHECK(is_nan(merged({2, nan}, other).out));
    CHECK(is_nan(merged({2, nan}, other).lse));
    CHECK(is_nan(merged(other, {2, nan}).out));
    CHECK(is_nan(merged(other, {2, nan}).lse));
  }
  CHECK(is_nan(merged({nan, 1}, {2, 1}).out));
  CHECK(merged({nan, 1}, {2, 1}).lse == doctest::Approx(1 + std::log(2.0)));
  for (A const lse : {A(0), huge, -huge, huge / 4}) {
    for (A const step : {A(0), A(0.1), A(1)}) {
      part const up = merged({huge, lse}, {huge, lse + step});
      part const down = merged({-huge, lse}, {-huge, lse - step});
      CHECK((is_finite(up.out) && up.out > huge / 2));
      CHECK((is_finite(down.out) && down.out < -huge / 2));
    }
  }
  CHECK(merged({1, huge}, {2, -huge}).out == 1);
  CHECK(merged({1, -huge}, {2, huge}).out == 2);
  CHECK(merged({1, -huge}, {2, huge}).lse == huge);
  CHECK(merged({1, 5}, {2, inf}).out == 2);  // its true value is beyond the range of A
  CHECK(merged({1, inf}, {2, 5}).out == 1);
}

TEST_CASE("numbers are told apart by their bits") {
  float const inf = std::numeric_limits<float>::infinity();
  CHECK(is_nan(std::nanf("")));
  CHECK(is_nan(-std::nan("")));
  for (float const x : {0.f, -0.f, 1e-45f, 3e38f, -3e38f, inf, -inf}) CHECK_FALSE(is_nan(x));
  for (float const x : {0.f, -0.f, 1e-45f, 3e38f, -3e38f}) CHECK(is_finite(x));
  for (float const x : {inf, -inf, std::nanf(""), -std::nanf("")}) CHECK_FALSE(is_finite(x));
  CHECK(is_empty(-inf));
  CHECK(is_empty(-std::numeric_limits<double>::infinity()));
  for (float const x : {inf, 0.f, std::nanf(""), -3e38f}) CHECK_FALSE(is_empty(x));
  static_assert(is_empty(empty_lse<float>()) && is_nan(__builtin_nan("")) && is_finite(1e308));
}

TEST_CASE("an arena counts what it then hands out") {
  auto const take = [](auto& arena) {
    auto* const a = arena.template take<float>(3);
    auto* const b = arena.template take<double>(100);
    return std::pair(a, b);
  };
  detail::arena counting;
  CHECK(take(counting).first == nullptr);
  for (std::size_t shift : {0u, 8u, 255u}) {
    std::vector<std::byte> memory(counting.needed() + 256);
    detail::arena arena(memory.data() + shift, counting.needed());
    auto const [a, b] = take(arena);
    CHECK(arena.fits());
    CHECK(reinterpret_cast<std::uintptr_t>(b) % detail::arena::alignment == 0);
    CHECK(reinterpret_cast<std::byte*>(b + 100) <= memory.data() + shift + counting.needed());
    CHECK(static_cast<void*>(a) < static_cast<void*>(b));
    detail::arena small(memory.data(), 300);
    take(small);
    CHECK_FALSE(small.fits());
  }
  CHECK(workspace<>(100).view().bytes == 100);
  workspace<> one(64), two = std::move(one);
  CHECK(one.bytes() == 0);
  CHECK(two.bytes() == 64);
}

TEST_CASE("a status throws its sentence") {
  CHECK(status{}.ok());
  CHECK_NOTHROW(or_throw(status{}));
  CHECK_THROWS_WITH(or_throw({status_code::invalid_shape, "why"}), "why");
  CHECK(clamped(5, 0, 3) == 3);
  CHECK(clamped(5, 6, 3) == 6);
  CHECK(ceil_div(7, 4) == 2);
  CHECK(round_up(8, 4) == 8);
}
