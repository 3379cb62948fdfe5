/// @file
/// q and k with the structure that real attention has: sinks, locality, heavy columns. How many
/// rows look far is planted, not told: a selector finds out by measuring.
#pragma once

#include <omnisparse/core/config.hpp>
#include <omnisparse/core/shape.hpp>

#include <cmath>
#include <cstdint>

namespace bench {

/// Every element is a function of the seed and its place, the same on host and device.
///
/// Channel 0 is the sink's: the first four keys have it. The next 40 are sines and cosines of the
/// position, periods from 32 tokens to 8192: nearby keys agree in all of them. Channel 41 marks
/// heavy keys, 2 % of each KV head. The others are noise. A row is of one of three kinds:
/// far-looking (low locality, drawn to heavy keys), local, or at rest on the sink.
struct planted {
  omnisparse::attention_shape shape;
  float far_rows = 0.4f;  ///< share of the rows that look far; heads differ by a factor of three
  std::uint32_t seed = 1;

  static constexpr int pairs = 20, heavy_channel = 1 + 2 * pairs;

  OMNISPARSE_HD float q(int b, int h, int i, int d) const {
    float const spread = shape.q_heads == 1
                             ? 1.f
                             : 0.5f + static_cast<float>(h) / static_cast<float>(shape.q_heads - 1);
    float const drawn = uniform(0, b, h, i, 0);
    bool const far = drawn < far_rows * spread;
    bool const local = !far && uniform(1, b, h, i, 0) < 0.5f;
    float const scale = sqrtf(static_cast<float>(shape.dim));
    float const tokens = logf(static_cast<float>(shape.kv_tokens));
    if (d == 0) return scale / 4 * (far || local ? 3.f : tokens + 5.f);
    if (d < heavy_channel) {
      float const sharp = far ? 3.f : local ? 20.f : 8.f;
      int const position = shape.kv_tokens - shape.q_tokens + i;
      return sharp * scale / pairs * wave(d - 1, position);
    }
    if (d == heavy_channel) return far ? scale / 4 * (4.f + 2.f * uniform(2, b, h, i, 0)) : 0.f;
    return normal(3, b, h, i, d);
  }

  OMNISPARSE_HD float k(int b, int g, int j, int d) const {
    if (d == 0) return j < 4 ? 4.f : 0.f;
    if (d < heavy_channel) return wave(d - 1, j);
    if (d == heavy_channel) return uniform(4, b, g, j, 0) < 0.02f ? 4.f : 0.f;
    return normal(5, b, g, j, d);
  }

  OMNISPARSE_HD float v(int b, int g, int j, int d) const { return normal(6, b, g, j, d); }

 private:
  OMNISPARSE_HD static float wave(int channel, int position) {
    float const period = 32.f * exp2f(8.f * static_cast<float>(channel / 2) / (pairs - 1));
    float const turns = static_cast<float>(position) / period;
    float const angle = 6.2831853f * (turns - floorf(turns));
    return channel % 2 == 0 ? cosf(angle) : sinf(angle);
  }
  OMNISPARSE_HD std::uint32_t bits(int what, int b, int h, int i, int d) const {
    std::uint64_t x = seed;
    for (int const part : {what, b, h, i, d}) {
      x = (x ^ static_cast<std::uint32_t>(part)) * 0x9e3779b97f4a7c15u;
      x ^= x >> 29;
    }
    return static_cast<std::uint32_t>((x * 0xbf58476d1ce4e5b9u) >> 32);
  }
  /// In [0, 1).
  OMNISPARSE_HD float uniform(int what, int b, int h, int i, int d) const {
    return static_cast<float>(bits(what, b, h, i, d) >> 8) * 0x1p-24f;
  }
  OMNISPARSE_HD float normal(int what, int b, int h, int i, int d) const {
    std::uint32_t const x = bits(what, b, h, i, d);
    float const u = (static_cast<float>(x >> 16) + 0.5f) * 0x1p-16f;
    float const turn = static_cast<float>(x & 0xffffu) * 0x1p-16f;
    return sqrtf(-2.f * logf(u)) * cosf(6.2831853f * turn);
  }
};

}  // namespace bench
