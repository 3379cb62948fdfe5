/// @file
/// The running softmax of the two rows that a thread holds of a product's accumulator.
#pragma once

#include <omnisparse/backend/cuda/collective/softmax_terms.hpp>
#include <omnisparse/backend/cuda/ptx/bit_mask.cuh>
#include <omnisparse/backend/cuda/ptx/ex2.cuh>
#include <omnisparse/core/near_field.hpp>

namespace omnisparse::collective {

// Register e of an accumulator belongs to row half (e >> 1) & 1, and to column 8 (e >> 2) + (e & 1)
// beyond 2 (lane % 4).

/// How many of a thread's N / 2 columns of a row lie before `column`, counted from its first.
template <int N>
__device__ __forceinline__ int columns_before(int column) {
  return clamped(2 * (column >> 3) + smaller(column & 7, 2), 0, N / 2);
}

/// Sets to -inf what a row does not see. `seen` counts keys, `first` is the key of column 0. The
/// columns of a row are bits of a word, which are tested several at a time.
template <int N>
__device__ __forceinline__ void mask_scores(float (&s)[N], key_range const (&seen)[2], int first,
                                            int lane) {
  static_assert(N <= 64);
  int const origin = first + 2 * (lane % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int const begin = columns_before<N>(seen[half].begin - origin);
    int const end = columns_before<N>(seen[half].end - origin);
    unsigned const bits =
        ptx::bits_from(static_cast<unsigned>(begin), static_cast<unsigned>(larger(end - begin, 0)));
#pragma unroll
    for (int e = 2 * half; e < N; e += (e & 1) == 0 ? 1 : 3) {
      if ((bits & 1u << (e / 4 * 2 + e % 2)) == 0) s[e] = -__builtin_huge_valf();
    }
  }
}

/// The largest finite value of T.
template <class T>
inline constexpr float largest_value = std::is_same_v<T, half>       ? 65504.f
                                       : std::is_same_v<T, bfloat16> ? 0x1.fep127f
                                                                     : 0x1.fffffep127f;

/// An average of values of T, before it is rounded to T. It is never larger than the largest of
/// them, but weights that were rounded may add up to more: no infinity comes of that, while those
/// among the values show.
template <class T>
__device__ __forceinline__ float bounded_average(float x) {
  return is_finite(x) ? clamped(x, -largest_value<T>, largest_value<T>) : x;
}

/// Makes bounded averages of sums of weighted values where some are too large for T, and says
/// whether it did. `total` sums the weights, as they were before they were rounded; each(act) calls
/// act(sum) for every sum.
template <class T, class Each>
__device__ __forceinline__ bool bound_averages(float total, Each const& each) {
  if constexpr (std::is_same_v<T, float>) {
    return false;
  } else {
    float top = 0.f;
    each([&](float const& sum) { top = fmaxf(top, fabsf(sum)); });
    if (!(top > largest_value<T> * total)) return false;
    each([&](float& sum) { sum = bounded_average<T>(sum / total); });
    return true;
  }
}

/// Maximum and sum of each row so far, of attention to values of T. The maximum is kept raw,
/// without the softmax scale. NaN among the scores makes the sum NaN, whatever the maximum is.
/// Logits beyond 2^29 are coarser in float than what exponentials can tell apart: their rows may be
/// anything.
template <class T>
struct online_softmax {
  float high[2];     ///< the maximum that exponents are taken against, at most 2^8 too small
  float sum[2];      ///< this thread's part
  float rescale[2];  ///< the factor that the last update asks of everything summed before

  /// Turns scores into exponentials. A row's maximum is renewed only where it grew by more than a
  /// factor of 2^8: sums in fp32 stay as exact, and most updates rescale nothing. `First`: there is
  /// nothing before; `Masked`: a row may see nothing yet.
  template <bool First, bool Masked, int N>
  __device__ __forceinline__ void update(float (&s)[N], softmax_terms const& terms) {
    float const bits = terms.scale.bits;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float a = First ? s[2 * half] : fmaxf(high[half], s[2 * half]);
      float b = s[2 * half + 1], c = s[2 * half + 4], d = s[2 * half + 5];
#pragma unroll
      for (int e = 8; e < N; e += 8) {
        a = fmaxf(a, s[e + 2 * half]);
        b = fmaxf(b, s[e + 2 * half + 1]);
        c = fmaxf(c, s[e + 2 * half + 4]);
        d = fmaxf(d, s[e + 2 * half + 5]);
      }
      float top = fmaxf(fmaxf(a, b), fmaxf(c, d));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      if constexpr (First) {
        sum[half] = 0.f;
      } else {
        bool const renew = (top - high[half]) * bits > 8.f;  // false for two of -inf
        rescale[half] = renew ? ptx::ex2((high[half] - top) * bits) : 1.f;
        top = renew ? top : high[half];
        sum[half] *= rescale[half];
      }
      high[half] = top;
      float shift = top * bits;
      if constexpr (softmax_terms::lifts<T> && !softmax_terms::drops<T>) {
        shift = fmaf(top, bits, terms.lift);
      }
      if (Masked && top == -__builtin_huge_valf()) shift = 0.f;
#pragma unroll
      for (int e = 0; e < N; ++e) {
        if ((e >> 1 & 1) != half) continue;
        s[e] = ptx::ex2(fmaf(s[e], bits, -shift));
        if constexpr (softmax_terms::drops<T>) s[e] *= terms.drop;
      }
      float even = 0.f, odd = 0.f;
#pragma unroll
      for (int e = 0; e < N; e += 4) {
        even += s[e + 2 * half];
        odd += s[e + 2 * half + 1];
      }
      sum[half] += even + odd;
    }
  }

  /// Applies the factors to what was summed before; one vote of the warp skips factors of 1.
  template <int N>
  __device__ __forceinline__ void rescale_sums(float (&o)[N]) const {
    if (!__any_sync(~0u, (rescale[0] != 1.f) | (rescale[1] != 1.f))) return;
#pragma unroll
    for (int e = 0; e < N; ++e) o[e] *= rescale[e >> 1 & 1];
  }

  /// A state that has seen no key.
  __device__ __forceinline__ void clear() {
    high[0] = high[1] = -__builtin_huge_valf();
    sum[0] = sum[1] = 0.f;
  }
  /// Adds the parts of the four threads of each row: once, at the end.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
      sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
    }
  }
  /// Has a finished row seen anything? NaN is something.
  __device__ __forceinline__ bool is_empty(int half) const { return sum[half] == 0.f; }
  /// The log-sum-exp of a finished row, nats; -inf where it saw nothing.
  __device__ __forceinline__ float lse(int half, softmax_terms const& terms) const {
    float const whole = softmax_terms::lifts<T> ? sum[half] * terms.raise : sum[half];
    return is_empty(half) ? -__builtin_huge_valf()
                          : fmaf(high[half], terms.scale.nats, logf(whole));
  }
};

}  // namespace omnisparse::collective
