// Decoding against the time that streaming the stored keys and values once takes on this machine.
#include <omnisparse/attention.hpp>
#include <omnisparse/backend/cpu/threads.hpp>
#include <omnisparse/testing/random.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>

namespace {

using namespace omnisparse;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Bytes a second of reading an array of `bytes` once, all threads; the best of many passes.
double read_bandwidth(std::size_t bytes) {
  constexpr std::size_t piece = std::size_t{1} << 16;
  std::size_t const pieces = bytes / sizeof(float) / piece;
  std::vector<float> data(pieces * piece, 1.f);
  int const threads = cpu::thread_count(0);
  double fastest = 0;
  for (double spent = 0; spent < 0.6;) {
    auto const start = std::chrono::steady_clock::now();
    std::vector<float> sums(static_cast<std::size_t>(threads) * 32);
    cpu::parallel_for(threads, static_cast<long long>(pieces), [&](long long n, int t) {
      Eigen::Map<Eigen::ArrayXf const> const part(data.data() + static_cast<std::size_t>(n) * piece,
                                                  piece);
      sums[static_cast<std::size_t>(t) * 32] += part.sum();
    });
    benchmark::DoNotOptimize(sums.data());
    double const seconds = seconds_since(start);
    fastest = std::max(fastest, static_cast<double>(data.size() * sizeof(float)) / seconds);
    spent += seconds;
  }
  return fastest;
}

/// The machine's bandwidth: an array larger than its caches.
double read_bandwidth() {
  static double const best = read_bandwidth(std::size_t{1} << 30);
  return best;
}

template <class T>
void decode(benchmark::State& state) {
  int const dim = static_cast<int>(state.range(0)), tokens = static_cast<int>(state.range(1));
  int const heads = dim == 64 ? 9 : 28, kv_heads = dim == 64 ? 3 : 4;
  auto const t = testing::random_tensors<T>({1, heads, kv_heads, 1, tokens, dim}, 1);
  kv_cache<backend::cpu, T> cache(
      {.sequences = 1, .kv_heads = kv_heads, .dim = dim, .max_tokens = tokens});
  int sequence = 0;
  or_throw(cache.add(sequence));
  auto const of = [&](tensor_view<T const> const& x) {
    return tensor_view<T const, host, 3>(x.data, {kv_heads, tokens, dim});
  };
  or_throw(cache.append(sequence, of(t.k_view()), of(t.v_view()), segment::text));
  auto const attend = attention{backend::cpu{}};
  std::vector<T> out(t.q.size());
  workspace<> memory(attend.decode_workspace_bytes(cache, 1, heads));
  auto const step = [&] {
    auto const start = std::chrono::steady_clock::now();
    or_throw(attend.decode(t.q_view(), cache, tensor_view(out.data(), {1, heads, 1, dim}), memory));
    return seconds_since(start);
  };
  double best = 1e9;
  for (auto _ : state) best = std::min(best, step());
  // The arithmetic alone: every page is one of the first few, which stay in the caches.
  auto const& ref = cache.ref();
  for (int g = 0; g < kv_heads; ++g) {
    int* const table = ref.tables + ref.lane(sequence, g, segment::text) * ref.lane_pages;
    for (int n = 0; n < ref.lane_pages; ++n) table[n] = table[n % cpu::part_pages];
  }
  double cached = 1e9;
  for (int n = 0; n < 20; ++n) cached = std::min(cached, step());
  // best_ms is the fastest step. of_floor: times the floor, at the bandwidth of an array larger
  // than the caches; of_same_size: at that of an array as large as the keys and values.
  double const bytes = 2.0 * kv_heads * tokens * dim * static_cast<double>(sizeof(T));
  double const same = read_bandwidth(static_cast<std::size_t>(bytes));
  state.counters["best_ms"] = best * 1e3;
  state.counters["GB/s"] = bytes / best / 1e9;
  state.counters["cached_GB/s"] = bytes / cached / 1e9;
  state.counters["read_GB/s"] = read_bandwidth() / 1e9;
  state.counters["of_floor"] = best / (bytes / read_bandwidth());
  state.counters["same_size_GB/s"] = same / 1e9;
  state.counters["of_same_size"] = best / (bytes / same);
}

void shapes(benchmark::internal::Benchmark* b) {
  b->Args({64, 32768})
      ->Args({64, 131072})
      ->Args({128, 32768})
      ->Args({128, 65536})
      ->Args({128, 131072});
  b->ArgNames({"D", "N"})->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(0.4);
}

}  // namespace

BENCHMARK(decode<float>)->Apply(shapes);
BENCHMARK(decode<bfloat16>)->Apply(shapes);
BENCHMARK(decode<half>)->Apply(shapes);

BENCHMARK_MAIN();
