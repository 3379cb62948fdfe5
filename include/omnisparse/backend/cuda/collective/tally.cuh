/// @file
/// Keys counted and weighed, and their sums over a warp. Integers only, so that no order matters.
#pragma once

#include <cstdint>

namespace omnisparse::collective {

/// Keys, and the mass that they hold in fixed point. Trivial, for it lives in shared memory: write
/// tally{} for nothing.
struct tally {
  unsigned count;
  std::uint64_t mass;

  __device__ tally& operator+=(tally const& other) noexcept {
    count += other.count;
    mass += other.mass;
    return *this;
  }
};

/// What a search walks by: the count where there is nothing else, else the mass.
__device__ inline unsigned weight_of(unsigned count) noexcept { return count; }
__device__ inline std::uint64_t weight_of(tally const& t) noexcept { return t.mass; }
__device__ inline unsigned count_of(unsigned count) noexcept { return count; }
__device__ inline unsigned count_of(tally const& t) noexcept { return t.count; }

/// Adds to a sum in shared memory, as other threads do.
__device__ inline void add_to(unsigned& sum, unsigned x) noexcept { atomicAdd(&sum, x); }
__device__ inline void add_to(tally& sum, tally const& x) noexcept {
  atomicAdd(&sum.count, x.count);
  atomicAdd(reinterpret_cast<unsigned long long*>(&sum.mass), x.mass);
}

inline constexpr unsigned whole_warp = ~0u;

__device__ inline int lane_index() noexcept { return static_cast<int>(threadIdx.x % 32); }
__device__ inline int warp_index() noexcept { return static_cast<int>(threadIdx.x / 32); }

template <class T>
__device__ T shuffle(T x, int lane) noexcept {
  return __shfl_sync(whole_warp, x, lane);
}
__device__ inline tally shuffle(tally const& x, int lane) noexcept {
  return {shuffle(x.count, lane), shuffle(x.mass, lane)};
}

/// The sum of lanes [0, own lane].
template <class T>
__device__ T warp_scan(T x) noexcept {
  for (int step = 1; step < 32; step *= 2) {
    T const other = shuffle(x, lane_index() - step);
    if (lane_index() >= step) x += other;
  }
  return x;
}

/// The sum of all lanes, in every lane.
__device__ inline unsigned warp_sum(unsigned x) noexcept {
  return __reduce_add_sync(whole_warp, x);
}
__device__ inline std::uint64_t warp_sum(std::uint64_t x) noexcept {  // below 2^62
  std::uint64_t sum = 0;
  for (int part = 0; part < 3; ++part) {
    auto const bits = static_cast<unsigned>(x >> 21 * part) & 0x1fffffu;
    sum += std::uint64_t{__reduce_add_sync(whole_warp, bits)} << 21 * part;
  }
  return sum;
}
__device__ inline tally warp_sum(tally const& x) noexcept {
  return {warp_sum(x.count), warp_sum(x.mass)};
}

}  // namespace omnisparse::collective
