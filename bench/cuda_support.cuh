/// @file
/// Timing by CUDA events, and what a plan comes to.
#pragma once

#include "planted.cuh"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <string>
#include <vector>

namespace bench {

using namespace omnisparse;

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Device milliseconds between marks on the default stream.
class stopwatch {
 public:
  stopwatch() = default;
  stopwatch(stopwatch const&) = delete;
  stopwatch& operator=(stopwatch const&) = delete;
  ~stopwatch() {
    for (cudaEvent_t const event : events_) cudaEventDestroy(event);
  }
  void restart() { used_ = 0, mark(); }
  void mark() {
    if (used_ == events_.size()) {
      cudaEvent_t event = nullptr;
      or_throw(detail::device_status(cudaEventCreate(&event)));
      events_.push_back(event);
    }
    or_throw(detail::device_status(cudaEventRecord(events_[used_++])));
  }
  /// Waits; [n]: from mark n to mark n + 1.
  std::vector<double> laps() {
    or_throw(detail::device_status(cudaEventSynchronize(events_[used_ - 1])));
    std::vector<double> laps;
    for (std::size_t n = 1; n < used_; ++n) {
      float ms = 0;
      or_throw(detail::device_status(cudaEventElapsedTime(&ms, events_[n - 1], events_[n])));
      laps.push_back(static_cast<double>(ms));
    }
    return laps;
  }

 private:
  std::deque<cudaEvent_t> events_;
  std::size_t used_ = 0;
};

/// Medians of `count` rounds of `round(watch)`, which marks after each of its stages; every round
/// is waited for, so launches never queue behind each other. Three rounds warm up.
template <class Round>
std::vector<double> median_laps(int count, Round const& round) {
  stopwatch watch;
  std::vector<std::vector<double>> all;
  for (int n = -3; n < count; ++n) {
    watch.restart();
    round(watch);
    auto const laps = watch.laps();
    all.resize(laps.size());
    for (std::size_t lap = 0; n >= 0 && lap < laps.size(); ++lap) all[lap].push_back(laps[lap]);
  }
  std::vector<double> medians;
  for (auto const& lap : all) medians.push_back(median(lap));
  return medians;
}

/// Runs a benchmark's iterations, each launched alone and waited for. Counters: ms (median), low
/// and high.
template <class Call>
double time_calls(benchmark::State& state, Call const& call) {
  for (int n = 0; n < 3; ++n) or_throw(call());
  stopwatch watch;
  std::vector<double> times;
  for (auto _ : state) {
    watch.restart();
    or_throw(call());
    watch.mark();
    times.push_back(watch.laps()[0]);
    state.SetIterationTime(times.back() / 1e3);
  }
  double const ms = median(times);
  state.counters["ms"] = ms;
  state.counters["low"] = *std::min_element(times.begin(), times.end());
  state.counters["high"] = *std::max_element(times.begin(), times.end());
  return ms;
}

/// Useful work: 4 D floating-point operations a visible (row, key) pair.
inline double tera_flops(attention_shape const& s, double pairs, double ms) {
  return 4.0 * s.dim * pairs / (ms * 1e9);
}
inline double dense_pairs(attention_shape const& s) {
  return static_cast<double>(s.batch) * s.q_heads *
         (static_cast<double>(s.q_tokens) * (s.kv_tokens - s.q_tokens) +
          0.5 * s.q_tokens * (s.q_tokens + 1.0));
}
inline double near_pairs(attention_shape const& s, near_field near) {
  std::int64_t pairs = 0;
  sequence_extent const extent{s.q_tokens, s.kv_tokens};
  for (int i = 0; i < s.q_tokens; ++i) {
    int const p = extent.position(i);
    pairs += near.sinks_of(p, s.kv_tokens, mask::causal).size() +
             near.window_of(p, s.kv_tokens, mask::causal).size();
  }
  return static_cast<double>(pairs) * s.q_heads * s.batch;
}

/// A device plan on the host.
inline attention_plan<host> on_host(plan_view<device> const& plan) {
  attention_plan<host> copy(plan.shape, {plan.chunk_rows}, plan.capacity);
  or_throw(copy_plan(copy.view(), plan));
  or_throw(detail::device_status(cudaDeviceSynchronize()));
  return copy;
}

template <class T>
std::vector<float> on_host(lse_view<T, device> const& lse) {
  std::vector<float> values(static_cast<std::size_t>(lse.size()));
  or_throw(detail::device_status(
      cudaMemcpy(values.data(), lse.data, values.size() * sizeof(float), cudaMemcpyDefault)));
  return values;
}

}  // namespace bench
