/// @file
/// How concentrated the mass of a list is: the statistics by which heads are compared.
#pragma once

#include <omnisparse/backend/cuda/collective/list_keys.cuh>
#include <omnisparse/core/observation.hpp>

namespace omnisparse::collective {

/// Shared memory of `concentration`.
struct concentration_memory {
  search_memory<unsigned>* by_mass;  ///< [1]
  std::uint64_t* sums;               ///< [2], 0
  unsigned* most;                    ///< [1], 0
};

/// Larger is less flat; no mass counts as fully concentrated: infinity. Sums are integers relative
/// to the largest mass, so that tiny masses count and no order does: equal masses give equal bits.
/// By all threads of all CTAs, which all get the answer.
__device__ inline double concentration(team const& t, list_keys const& keys, flatness_by by,
                                       concentration_memory const& m) noexcept {
  float largest = 0.f;
  keys.each_block<ranks::none, masses::yes>(
      [&](int, unsigned const(&key)[4], float const(&mass)[4]) {
        for (int n = 0; n < 4; ++n) {
          if (is_ranked(key[n])) largest = fmaxf(largest, mass[n]);
        }
      });
  unsigned const bits = __reduce_max_sync(whole_warp, __float_as_uint(largest));
  if (lane_index() == 0) atomicMax(m.most, bits);
  t.sync();
  unsigned most = 0;
  for (int rank = 0; rank < t.size; ++rank) most = larger(most, t.at(*m.most, rank));
  if (most == 0) return INFINITY;

  // Shares of a power of two just above the largest mass, and their unit: sums stay below 2^61.
  float const unit = power_of_two(126 - static_cast<int>(most >> 23));
  int const exponent = 29 + __clz(keys.far.size());
  float const scale = power_of_two(exponent);
  float least = 0.f;  // of the masses that count one by one
  std::uint64_t ties = 0;
  if (by == flatness_by::top_share) {
    auto const each = [&](auto const& visit) {
      keys.each_block<ranks::none, masses::yes>(
          [&](int, unsigned const(&key)[4], float const(&mass)[4]) {
            unsigned by_mass[4];
            for (int n = 0; n < 4; ++n) {
              by_mass[n] = is_ranked(key[n]) ? rank_of(mass[n]) : no_candidate;
            }
            visit(by_mass, [](int) { return 0u; });
          });
    };
    find_threshold(t, *m.by_mass, 0, each, each,
                   [](unsigned count) { return std::uint64_t{ceil_div(count, 20u)}; });
    least = __uint_as_float(m.by_mass->found.key & 0x7fffffffu);
    ties = m.by_mass->found.lack * __float2ull_rn(least * unit * scale);
  }
  std::uint64_t sum = 0, terms = 0;
  keys.each_block<ranks::none, masses::yes>(
      [&](int, unsigned const(&key)[4], float const(&mass)[4]) {
        for (int n = 0; n < 4; ++n) {
          if (!is_ranked(key[n])) continue;
          float const share = mass[n] * unit;
          double const x = static_cast<double>(share);
          sum += __float2ull_rn(share * scale);
          if (by == flatness_by::simpson) {
            terms += __double2ull_rn(x * x * static_cast<double>(scale));
          } else if (by == flatness_by::top_share) {
            if (mass[n] > least) terms += __float2ull_rn(share * scale);
          } else if (share > 0.f) {
            terms += __double2ull_rn(-x * log(x) * static_cast<double>(scale));
          }
        }
      });
  sum = warp_sum(sum);
  terms = warp_sum(terms);
  if (lane_index() == 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(m.sums), sum);
    atomicAdd(reinterpret_cast<unsigned long long*>(m.sums + 1), terms);
  }
  t.sync();
  sum = 0;
  terms = ties;
  for (int rank = 0; rank < t.size; ++rank) {
    sum += t.at(m.sums[0], rank);
    terms += t.at(m.sums[1], rank);
  }
  double const whole = static_cast<double>(sum), part = static_cast<double>(terms) / whole;
  double const one = static_cast<double>(scale);
  if (by == flatness_by::simpson) return part * one / whole;
  return by == flatness_by::top_share ? part : -part - log(whole / one);
}

}  // namespace omnisparse::collective
