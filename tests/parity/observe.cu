// Observing on the GPU against the oracle of planning: far estimates, classes, probes, rescue.
#include <omnisparse/backend/cpu/reference_plan.hpp>
#include <omnisparse/backend/cuda/hopper_probe.cuh>
#include <omnisparse/backend/cuda/observe.cuh>
#include <omnisparse/budget/dense.hpp>
#include <omnisparse/budget/fixed.hpp>
#include <omnisparse/rescue/none.hpp>
#include <omnisparse/scorer/column_mass.hpp>
#include <omnisparse/selector/all.hpp>
#include <omnisparse/selector/sink_contrast.hpp>
#include <omnisparse/slim/none.hpp>
#include <omnisparse/testing/plans.hpp>
#include <omnisparse/testing/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

using namespace omnisparse;

namespace {

void require_cuda(cudaError_t error) {
  REQUIRE_MESSAGE(error == cudaSuccess, std::string(cudaGetErrorString(error)));
}

// Device memory that starts as 0xff bytes: NaN as a number, nonsense as an index.
template <class T>
class device_array {
 public:
  explicit device_array(std::size_t count) : count_(count), memory_(count * sizeof(T) + 16) {
    require_cuda(cudaMemset(memory_.data(), 0xff, memory_.bytes()));
  }
  explicit device_array(std::vector<T> const& values) : device_array(values.size()) {
    require_cuda(cudaMemcpy(data(), values.data(), count_ * sizeof(T), cudaMemcpyDefault));
  }
  T* data() const { return static_cast<T*>(memory_.data()); }
  std::vector<T> download() const {
    std::vector<T> values(count_);
    require_cuda(cudaMemcpy(values.data(), data(), count_ * sizeof(T), cudaMemcpyDefault));
    return values;
  }

 private:
  std::size_t count_;
  buffer<device> memory_;
};

// A [B, H, N, D] tensor on the device: contiguous; tokens first; or with rows of odd length.
enum class layout { plain, tokens_first, odd };

template <class T>
struct device_tensor {
  std::vector<T> values;
  device_array<T> memory;
  tensor_view<T const, device> view;

  device_tensor(tensor_view<T const> const& x, layout order)
      : values(spread(x, order)), memory(values), view(view_of(x, memory.data(), order)) {}

  static tensor_view<T const, device> view_of(tensor_view<T const> const& x, T const* data,
                                              layout order) {
    std::int64_t const h = x.extent(1), n = x.extent(2), d = x.extent(3) + (order == layout::odd);
    int const shape[4] = {x.extent(0), x.extent(1), x.extent(2), x.extent(3)};
    if (order == layout::tokens_first) return {data, shape, {n * h * d, d, h * d, 1}};
    return {data, shape, {h * n * d, n * d, d, 1}};
  }
  static std::vector<T> spread(tensor_view<T const> const& x, layout order) {
    auto const y = view_of(x, nullptr, order);
    std::vector<T> values(static_cast<std::size_t>(x.extent(0) * y.stride(0)),
                          static_cast<T>(__builtin_nanf("")));
    for (int b = 0; b < x.extent(0); ++b) {
      for (int h = 0; h < x.extent(1); ++h) {
        for (int i = 0; i < x.extent(2); ++i) {
          auto const at = b * y.stride(0) + h * y.stride(1) + i * y.stride(2);
          std::memcpy(values.data() + at, x.at(b, h, i),
                      static_cast<std::size_t>(x.extent(3)) * sizeof(T));
        }
      }
    }
    return values;
  }
};

// Policies that write down what they were shown. `far` and `shares` are indexed [head, position].
struct recording_selector {
  using observes = observation::near_and_far;
  float epsilon = 0.05f;
  far_estimate estimate = {};
  float* far = nullptr;
  int positions = 0;
  OMNISPARSE_HD constexpr bool keeps(observes seen, query_row row) const noexcept {
    if (far != nullptr) far[row.head * positions + row.position + positions / 2] = seen.lse_far;
    return seen.far_mass > epsilon;
  }
};

struct recording_rescue {
  using observes = observation::coverage;
  float least = 0.5f;
  far_estimate estimate = {};
  float* shares = nullptr;
  int positions = 0;
  OMNISPARSE_HD constexpr bool rescues(observes seen, query_row row) const noexcept {
    if (shares != nullptr) shares[row.head * positions + row.position + positions / 2] = seen.share;
    return seen.share < least;
  }
};

struct field_scorer {  // mass, peak or rows as the score
  using observes = observation::probe_mass;
  int field = 0, last = 5, every = 7;
  OMNISPARSE_HD constexpr bool probes(int i, int n) const noexcept {
    return i >= n - last || (every > 0 && i % every == 2);
  }
  OMNISPARSE_HD constexpr float score(observes seen, token) const noexcept {
    return field == 0 ? seen.mass : field == 1 ? seen.peak : static_cast<float>(seen.rows);
  }
};

template <class Selector, class Rescue = rescue::none, class Scorer = field_scorer,
          class Budget = budget::dense>
using policies = policy_set<Selector, Rescue, Scorer, Budget, slim::none, slim::none>;

struct setting {
  attention_shape shape;
  near_field near;
  mask limit = mask::causal;
  far_estimate estimate = {};
  layout order = layout::plain;
  int chunk_rows = 0;
  std::vector<int> q_lengths = {}, kv_lengths = {};
  float sharpness = 1.f;
  softmax_scale scale = {};

  std::string text() const {
    auto const& s = shape;
    return "B " + std::to_string(s.batch) + " H " + std::to_string(s.q_heads) + "/" +
           std::to_string(s.kv_heads) + " N " + std::to_string(s.q_tokens) + "/" +
           std::to_string(s.kv_tokens) + " D " + std::to_string(s.dim) + " window " +
           std::to_string(near.window) + " sinks " + std::to_string(near.sinks) +
           (limit == mask::full ? " full" : " causal") + " block " +
           std::to_string(estimate.block) + "/" + std::to_string(estimate.per_level) +
           (estimate.by == far_estimate::kind::upper_bound ? " bound" : "") + " layout " +
           std::to_string(static_cast<int>(order)) + " chunk " + std::to_string(chunk_rows) +
           (kv_lengths.empty() ? "" : " ragged") + " scale " + std::to_string(scale.value);
  }
};

// A call on both sides, and the memory of its observations.
template <class T>
struct both_sides {
  setting const& set;
  testing::tensors<T> t;
  std::vector<segment> kinds;
  device_tensor<T> q, k;
  device_array<int> q_lengths, kv_lengths;
  device_array<segment> segments;
  attention_call<T, host> on_host;
  attention_call<T, device> on_device;

  explicit both_sides(setting const& s, std::uint64_t seed = 1)
      : set(s),
        t(made(s, seed)),
        kinds(made_kinds(s)),
        q(t.q_view(), s.order),
        k(t.k_view(), s.order),
        q_lengths(s.q_lengths),
        kv_lengths(s.kv_lengths),
        segments(kinds) {
    on_host.shape = on_device.shape = s.shape;
    on_host.scale = on_device.scale = s.scale;
    on_host.q = t.q_view();
    on_host.k = t.k_view();
    on_device.q = q.view;
    on_device.k = k.view;
    if (!s.q_lengths.empty()) {
      on_host.in.q_lengths = {s.q_lengths.data(), {s.shape.batch}};
      on_device.in.q_lengths = {q_lengths.data(), {s.shape.batch}};
    }
    if (!s.kv_lengths.empty()) {
      on_host.in.kv_lengths = {s.kv_lengths.data(), {s.shape.batch}};
      on_device.in.kv_lengths = {kv_lengths.data(), {s.shape.batch}};
    }
    on_host.in.segments = {kinds.data(), {s.shape.batch, s.shape.kv_tokens}};
    on_device.in.segments = {segments.data(), {s.shape.batch, s.shape.kv_tokens}};
  }

  // Keys and rows that do not exist are NaN.
  static testing::tensors<T> made(setting const& s, std::uint64_t seed) {
    auto t = testing::random_tensors<T>(s.shape, seed, s.sharpness);
    T const nan = static_cast<T>(__builtin_nanf(""));
    auto const spoil = [&](std::vector<T>& x, int heads, int tokens,
                           std::vector<int> const& lengths) {
      for (std::size_t n = 0; n < x.size() && !lengths.empty(); ++n) {
        auto const token = static_cast<int>(n / static_cast<std::size_t>(s.shape.dim)) % tokens;
        auto const b = n / static_cast<std::size_t>(s.shape.dim) /
                       static_cast<std::size_t>(tokens) / static_cast<std::size_t>(heads);
        if (token >= lengths[b]) x[n] = nan;
      }
    };
    spoil(t.q, s.shape.q_heads, s.shape.q_tokens, s.q_lengths);
    spoil(t.k, s.shape.kv_heads, s.shape.kv_tokens, s.kv_lengths);
    return t;
  }
  static std::vector<segment> made_kinds(setting const& s) {
    std::vector<segment> kinds(static_cast<std::size_t>(s.shape.batch) *
                               static_cast<std::size_t>(s.shape.kv_tokens));
    for (std::size_t n = 0; n < kinds.size(); ++n) {
      kinds[n] = n % 11 == 3 ? segment::text : segment::visual;
    }
    return kinds;
  }
  int positions() const { return 2 * (set.shape.q_tokens + set.shape.kv_tokens) + 2; }
  std::size_t row_count() const {
    return static_cast<std::size_t>(set.shape.batch) * static_cast<std::size_t>(set.shape.q_heads) *
           static_cast<std::size_t>(set.shape.q_tokens);
  }
  // The log-sum-exp of what a row of a class sees.
  double seen(int b, int h, int i, row_class kind, std::vector<bool> const& listed) const {
    sequence_extent const extent = extent_of(set.shape, on_host.in, b);
    std::vector<double> logits;
    for (int j = 0; j < extent.kv_tokens; ++j) {
      if (cpu::reference_sees(kind, set.near, set.limit, extent.position(i), extent.kv_tokens,
                              listed, j)) {
        logits.push_back(cpu::reference_logit(on_host.q.at(b, h, i),
                                              on_host.k.at(b, h / set.shape.group(), j),
                                              set.shape.dim, set.scale));
      }
    }
    return cpu::reference_lse(logits);
  }
  double far(int b, int h, int i, std::vector<bool> const* listed) const {
    sequence_extent const extent = extent_of(set.shape, on_host.in, b);
    return cpu::reference_far_lse(
        on_host.q.at(b, h, i), on_host.k, b, h / set.shape.group(),
        set.near.window_of(extent.position(i), extent.kv_tokens, set.limit), set.near.sinks,
        extent.kv_tokens, set.estimate, set.limit,
        [&](int j) { return listed == nullptr || !(*listed)[static_cast<std::size_t>(j)]; },
        set.scale);
  }
};

template <class Policies>
struct observing {
  plan_view<host> frame;
  launch::observe_memory<Policies> memory;
  std::size_t bytes;
  buffer<device> space;

  observing(attention_shape const& shape, Policies const& p, chunk_range range) {
    detail::arena counting;
    launch::observe_memory<Policies>::take(counting, shape, p, range);
    bytes = counting.needed();
    space = buffer<device>(bytes);
    REQUIRE(space);
    require_cuda(cudaMemset(space.data(), 0xff, bytes));
    detail::arena arena(space.data(), bytes);
    memory = launch::observe_memory<Policies>::take(arena, shape, p, range);
    REQUIRE(arena.fits());
  }
};

void finish(status s, std::string const& what) {
  REQUIRE_MESSAGE(s.ok(), what << ": " << s.message);
  cudaError_t const error = cudaDeviceSynchronize();
  REQUIRE_MESSAGE(error == cudaSuccess, what << ": " << std::string(cudaGetErrorString(error)));
}

struct tally {
  int wrong = 0, checked = 0;
  double worst = 0;
  std::string first;
  void add(double off, double most, std::string const& where) {
    ++checked;
    if (off <= most) {
      worst = off > worst ? off : worst;
      return;
    }
    if (wrong++ == 0) first = where + " off by " + std::to_string(off);
    if (!(off <= worst)) worst = off;
  }
  void report(std::string const& what) const {
    CHECK_MESSAGE(wrong == 0, what << ": " << wrong << " of " << checked << ", worst " << worst
                                   << "; " << first);
  }
};

double distance(double x, double y) { return x == y ? 0 : std::abs(x - y); }

// What split means, 16-bit variances and float sums may cost, in nats.
// Variances and squares of q have eight bits: their sum over D channels is off by about 1/370 of it
// over sqrt D, which few channels and large scales let grow; five times that.
double far_tolerance(double far, setting const& set) {
  double const sharpness = static_cast<double>(set.sharpness), dim = set.shape.dim;
  double const spread = sharpness * set.scale.of<double>(set.shape.dim) * std::sqrt(dim);
  bool const usual = set.scale.value == 0 && dim >= 64;
  return 1e-3 * (1 + sharpness) + (usual ? 0 : 7.5e-3 * spread * spread / std::sqrt(dim)) +
         1e-5 * std::abs(far);
}

template <class T>
void check_far(setting const& set) {
  both_sides<T> const sides(set);
  attention_shape const& s = set.shape;
  std::vector<bool> const none(static_cast<std::size_t>(s.kv_tokens), false);
  int const step = larger(1, s.q_tokens * s.q_heads / 60);
  std::vector<float> near(sides.row_count(), 0.f);
  for (int b = 0, n = 0; b < s.batch; ++b) {
    for (int h = 0; h < s.q_heads; ++h) {
      for (int i = 0; i < s.q_tokens; ++i, ++n) {
        if ((h * s.q_tokens + i) % step == 0 && i < extent_of(s, sides.on_host.in, b).q_tokens) {
          near[static_cast<std::size_t>(n)] =
              static_cast<float>(sides.seen(b, h, i, row_class::lazy, none));
        }
      }
    }
  }
  device_array<float> const lse(near);
  device_array<float> const far(static_cast<std::size_t>(s.q_heads * sides.positions()));
  policies<recording_selector> p;
  p.near = set.near;
  p.limit = set.limit;
  p.selector = {.epsilon = 0.3f,
                .estimate = set.estimate,
                .far = s.batch == 1 ? far.data() : nullptr,
                .positions = sides.positions()};
  observing<decltype(p)> const memory(s, p, {0, 1});
  attention_plan<device> const plan(s);
  require_cuda(cudaMemset(plan.view().rows, 0x77, sides.row_count()));
  auto const run = [&] {
    finish(launch::classify_far(sides.on_device, p,
                                lse_view<T, device>{lse.data(), {s.batch, s.q_heads, s.q_tokens}},
                                plan.view(), memory.memory, nullptr),
           set.text());
    std::vector<row_class> rows(sides.row_count());
    require_cuda(cudaMemcpy(rows.data(), plan.view().rows, rows.size(), cudaMemcpyDefault));
    return rows;
  };
  auto const rows = run();
  auto const fars = far.download();
  tally lses, bounds, classes;
  for (int b = 0, n = 0; b < s.batch; ++b) {
    sequence_extent const extent = extent_of(s, sides.on_host.in, b);
    for (int h = 0; h < s.q_heads; ++h) {
      for (int i = 0; i < s.q_tokens; ++i, ++n) {
        std::string const where =
            "b " + std::to_string(b) + " h " + std::to_string(h) + " i " + std::to_string(i);
        auto const kind = rows[static_cast<std::size_t>(n)];
        if (i >= extent.q_tokens) {
          classes.add(kind == row_class::lazy ? 0 : 9, 0, where + " beyond");
          continue;
        }
        if ((h * s.q_tokens + i) % step != 0) continue;
        double const expected = sides.far(b, h, i, nullptr);
        if (s.batch == 1) {
          double const x = static_cast<double>(fars[static_cast<std::size_t>(
              h * sides.positions() + extent.position(i) + sides.positions() / 2)]);
          lses.add(distance(x, expected), far_tolerance(expected, set),
                   where + " is " + std::to_string(x) + " for " + std::to_string(expected));
          if (set.estimate.by == far_estimate::kind::upper_bound) {
            double const truth = sides.seen(b, h, i, row_class::rescued, none);
            double const close = sides.seen(b, h, i, row_class::lazy, none);
            double const rest =
                truth > close ? truth + std::log1p(-std::exp(close - truth)) : empty_lse<double>();
            bounds.add(x >= rest - 2e-6 * (1 + std::abs(rest)) || x == rest ? 0 : rest - x, 0,
                       where + " bound");
          }
        }
        double const share = cpu::reference_share(
            expected, static_cast<double>(near[static_cast<std::size_t>(n)]), 1);
        bool const text = extent.position(i) >= 0 &&
                          sides.on_host.in.segments(b, extent.position(i)) == segment::text;
        bool const active = share > 0.3 || text;
        bool const same = (kind == row_class::active) == active && kind <= row_class::active;
        classes.add(same || (!text && std::abs(share - 0.3) < 1e-3) ? 0 : 1, 0, where + " class");
      }
    }
  }
  lses.report(set.text() + " far");
  bounds.report(set.text() + " bound");
  classes.report(set.text() + " classes");
  for (int n = 0; n < 3; ++n) {
    CHECK_MESSAGE(run() == rows, set.text() << ": classes move");
    auto const again = far.download();
    CHECK_MESSAGE(std::memcmp(again.data(), fars.data(), fars.size() * sizeof(float)) == 0,
                  set.text() << ": bits move");
  }
}

template <class T, bool Hopper = false>
void check_probe(setting const& set, field_scorer scorer = {}) {
  both_sides<T> const sides(set);
  attention_shape const& s = set.shape;
  policies<selector::all> p;
  p.near = set.near;
  p.limit = set.limit;
  p.scorer = scorer;
  p.rows = {set.chunk_rows};
  attention_plan<host> const frame(s, p.rows);
  plan_view<device> plan;
  plan.shape = s;
  plan.chunk_rows = frame.view().chunk_rows;
  int const most = 2;  // chunks at a time
  detail::arena counting;
  scores_view::take(counting, s, {0, most});
  buffer<device> const space(counting.needed());
  detail::arena arena(space.data(), space.bytes());
  scores_view const scores = scores_view::take(arena, s, {0, most});
  observing<decltype(p)> const memory(s, p, {0, most});
  auto const ask = [&](chunk_range range) -> status {
    if constexpr (!Hopper) {
      return launch::probe(sides.on_device, p, plan, range, scores, memory.memory, nullptr);
    } else {
      using path_memory = launch::hopper_memory<T>;
      detail::arena size;
      path_memory::take(size, s, plan.chunk_rows, set.limit, s.kv_tokens);
      device_array<char> const bytes(size.needed());
      detail::arena paths(bytes.data(), size.needed());
      auto const m = path_memory::take(paths, s, plan.chunk_rows, set.limit, s.kv_tokens);
      auto const run = [&](auto dim) {
        return launch::hopper_probe<decltype(dim)::value>(sides.on_device, p, range, scores,
                                                          memory.memory, m, nullptr);
      };
      status const ran = s.dim <= 64 ? run(std::integral_constant<int, 64>{})
                                     : run(std::integral_constant<int, 128>{});
      require_cuda(cudaDeviceSynchronize());  // before its memory goes
      return ran;
    }
  };
  tally masses, peaks, counts, totals;
  for (int first = 0; first < plan.chunks(); first += most) {
    chunk_range const range{first, smaller(most, plan.chunks() - first)};
    auto const count =
        static_cast<std::size_t>(range.lists(s)) * static_cast<std::size_t>(scores.keys);
    std::vector<float> fields[3], mass(count), again(count);
    std::vector<int> pairs(static_cast<std::size_t>(range.lists(s)));
    for (int field = 0; field < 3; ++field) {
      p.scorer.field = field;
      require_cuda(cudaMemset(space.data(), 0xff, space.bytes()));
      finish(ask(range), set.text());
      fields[field].resize(count);
      require_cuda(
          cudaMemcpy(fields[field].data(), scores.score, count * sizeof(float), cudaMemcpyDefault));
      require_cuda(cudaMemcpy(again.data(), scores.mass, count * sizeof(float), cudaMemcpyDefault));
      if (field > 0) {
        CHECK_MESSAGE(std::memcmp(again.data(), mass.data(), count * sizeof(float)) == 0,
                      set.text() << ": probe bits move");
      }
      mass = again;
    }
    require_cuda(
        cudaMemcpy(pairs.data(), scores.pairs, pairs.size() * sizeof(int), cudaMemcpyDefault));
    CHECK(std::memcmp(fields[0].data(), mass.data(), count * sizeof(float)) == 0);
    for (int b = 0; b < s.batch; ++b) {
      sequence_extent const extent = extent_of(s, sides.on_host.in, b);
      for (int c = range.first; c < range.first + range.count; ++c) {
        int const row = c * plan.chunk_rows;
        int const rows = smaller(plan.chunk_rows, extent.q_tokens - row);
        for (int g = 0; g < s.kv_heads; ++g) {
          auto const profile =
              cpu::reference_observe(sides.on_host, p, b, g, extent, row, larger(0, rows));
          int const list = range.list(b, c, g, s.kv_heads);
          totals.add(distance(pairs[static_cast<std::size_t>(list)], profile.total), 0, "pairs");
          for (int j = 0; j < scores.keys; ++j) {
            auto const at = static_cast<std::size_t>(list) * static_cast<std::size_t>(scores.keys) +
                            static_cast<std::size_t>(j);
            bool const exists = j < s.kv_tokens;
            observation::probe_mass const seen =
                exists ? profile.seen[static_cast<std::size_t>(j)] : observation::probe_mass{};
            double const expected = exists ? profile.mass[static_cast<std::size_t>(j)] : 0.0;
            std::string const where = "list " + std::to_string(list) + " key " + std::to_string(j);
            double const rate = std::is_same_v<T, float> ? 1e-4 : 2e-5;
            masses.add(distance(static_cast<double>(mass[at]), expected), rate * expected + 1e-12,
                       where + " of " + std::to_string(expected));
            peaks.add(distance(static_cast<double>(fields[1][at]), static_cast<double>(seen.peak)),
                      rate * static_cast<double>(seen.peak) + 1e-12, where + " peak");
            counts.add(distance(static_cast<double>(fields[2][at]), seen.rows), 0,
                       where + " rows for " + std::to_string(seen.rows));
          }
        }
      }
    }
  }
  masses.report(set.text() + " mass");
  peaks.report(set.text() + " peak");
  counts.report(set.text() + " rows");
  totals.report(set.text() + " pairs");
}

template <class T>
void check_rescue(setting const& set, testing::plan_kind kind) {
  both_sides<T> const sides(set);
  attention_shape const& s = set.shape;
  policies<selector::all, recording_rescue> p;
  p.near = set.near;
  p.limit = set.limit;
  p.rows = {set.chunk_rows};
  attention_plan<host> const frame(s, p.rows);
  plan_view<host> const plan = frame.view();
  testing::fill_plan(plan, kind, 5);
  int const step = larger(1, s.q_tokens * s.q_heads / 60);
  std::vector<float> seen(sides.row_count(), 0.f);
  for (int b = 0, n = 0; b < s.batch; ++b) {
    int const rows = extent_of(s, sides.on_host.in, b).q_tokens;
    for (int h = 0; h < s.q_heads; ++h) {
      for (int i = 0; i < s.q_tokens; ++i, ++n) {
        if (i >= rows) plan.rows_at(b, h)[i] = row_class::lazy;
        if ((h * s.q_tokens + i) % step != 0 || i >= rows) continue;
        auto const listed = cpu::reference_list(plan, b, i / plan.chunk_rows, h / s.group());
        seen[static_cast<std::size_t>(n)] =
            static_cast<float>(sides.seen(b, h, i, row_class::active, listed));
      }
    }
  }
  device_array<float> const lse(seen);
  device_array<float> const shares(static_cast<std::size_t>(s.q_heads * sides.positions()));
  p.rescue = {.least = 0.6f,
              .estimate = set.estimate,
              .shares = s.batch == 1 ? shares.data() : nullptr,
              .positions = sides.positions()};
  observing<decltype(p)> memory(s, p, {0, 1});
  if (set.chunk_rows > 0) memory.memory.rescue_chunks = 1;  // a loop over chunks
  attention_plan<device> const there(s, p.rows);
  std::vector<row_class> rows[2];
  for (auto& result : rows) {
    require_cuda(cudaMemset(memory.space.data(), 0xff, memory.bytes));
    REQUIRE(copy_plan(there.view(), plan).ok());
    finish(launch::rescue(sides.on_device, p,
                          lse_view<T, device>{lse.data(), {s.batch, s.q_heads, s.q_tokens}},
                          there.view(), memory.memory, nullptr),
           set.text());
    result.resize(sides.row_count());
    require_cuda(cudaMemcpy(result.data(), there.view().rows, result.size(), cudaMemcpyDefault));
  }
  CHECK_MESSAGE(rows[0] == rows[1], set.text() << ": rescue moves");
  auto const told = shares.download();
  tally classes, coverages;
  for (int b = 0, n = 0; b < s.batch; ++b) {
    sequence_extent const extent = extent_of(s, sides.on_host.in, b);
    for (int h = 0; h < s.q_heads; ++h) {
      for (int i = 0; i < s.q_tokens; ++i, ++n) {
        auto const before = plan.rows_at(b, h)[i], after = rows[0][static_cast<std::size_t>(n)];
        std::string const where =
            "b " + std::to_string(b) + " h " + std::to_string(h) + " i " + std::to_string(i);
        if (before != row_class::active) {
          classes.add(before == after ? 0 : 9, 0, where + " was not active");
          continue;
        }
        if ((h * s.q_tokens + i) % step != 0) continue;
        auto const listed = cpu::reference_list(plan, b, i / plan.chunk_rows, h / s.group());
        double const left = sides.far(b, h, i, &listed);
        double const share =
            left == empty_lse<double>()
                ? 1.0
                : cpu::reference_share(static_cast<double>(seen[static_cast<std::size_t>(n)]), left,
                                       0);
        if (s.batch == 1) {
          double const x = static_cast<double>(told[static_cast<std::size_t>(
              h * sides.positions() + extent.position(i) + sides.positions() / 2)]);
          coverages.add(distance(x, share), 1e-3,
                        where + " is " + std::to_string(x) + " for " + std::to_string(share));
        }
        bool const rescued = share < 0.6;
        bool const same = after == (rescued ? row_class::rescued : row_class::active);
        classes.add(same || std::abs(share - 0.6) < 1e-3 ? 0 : 1, 0, where + " class");
      }
    }
  }
  classes.report(set.text() + " rescue classes");
  coverages.report(set.text() + " coverage");
}

template <class T>
void check_contrast(setting const& set, int first, pool_range range) {
  both_sides<T> const sides(set);
  attention_shape const& s = set.shape;
  policies<selector::sink_contrast> p;
  p.near = set.near;
  p.limit = set.limit;
  p.selector = {.tau = 0.52f, .first = first, .range = range, .keep_lazy = 13};
  observing<decltype(p)> const memory(s, p, {0, 1});
  attention_plan<device> const plan(s);
  std::vector<row_class> rows[2];
  for (auto& result : rows) {
    require_cuda(cudaMemset(memory.space.data(), 0xff, memory.bytes));
    require_cuda(cudaMemset(plan.view().rows, 0x77, sides.row_count()));
    finish(launch::classify(sides.on_device, p, plan.view(), memory.memory, nullptr), set.text());
    result.resize(sides.row_count());
    require_cuda(cudaMemcpy(result.data(), plan.view().rows, result.size(), cudaMemcpyDefault));
  }
  CHECK_MESSAGE(rows[0] == rows[1], set.text() << ": contrast moves");
  tally classes;
  int active_rows = 0;
  for (int b = 0, n = 0; b < s.batch; ++b) {
    sequence_extent const extent = extent_of(s, sides.on_host.in, b);
    for (int h = 0; h < s.q_heads; ++h) {
      for (int i = 0; i < s.q_tokens; ++i, ++n) {
        auto const kind = rows[0][static_cast<std::size_t>(n)];
        std::string const where =
            "b " + std::to_string(b) + " h " + std::to_string(h) + " i " + std::to_string(i);
        if (i >= extent.q_tokens) {
          classes.add(kind == row_class::lazy ? 0 : 9, 0, where + " beyond");
          continue;
        }
        if ((i + h) % 4 != 0) continue;
        int const position = extent.position(i);
        int const end = range == pool_range::past ? clamped(position + 1, 0, extent.kv_tokens)
                                                  : extent.kv_tokens;
        auto const seen = cpu::reference_sink_and_mean(sides.on_host.q.at(b, h, i), sides.on_host.k,
                                                       b, h / s.group(), first, end, set.scale);
        bool const text = position >= 0 && sides.on_host.in.segments(b, position) == segment::text;
        bool const keeps = p.selector.keeps(seen, {position, h}) || text;
        active_rows += keeps ? 1 : 0;
        bool const same = kind == (keeps ? row_class::active : row_class::lazy);
        classes.add(same || std::abs(seen.share - 0.52f) < 2e-6f ? 0 : 1, 0,
                    where + " share " + std::to_string(seen.share));
      }
    }
  }
  classes.report(set.text() + " contrast, first " + std::to_string(first));
  CHECK(active_rows > 0);
}

constexpr far_estimate flat{.block = 64, .per_level = 1 << 20};
constexpr far_estimate fine{.block = 16, .per_level = 1};
constexpr far_estimate wide{.variance_weight = 0.5f, .block = 16, .per_level = 8};
constexpr far_estimate bound{.by = far_estimate::kind::upper_bound, .block = 16, .per_level = 4};

setting const far_settings[] = {
    {{1, 4, 2, 300, 300, 64}, {32, 4}},
    {{1, 7, 1, 333, 333, 128}, {64, 4}, mask::causal, {}},
    {{1, 2, 2, 400, 400, 128}, {0, 0}, mask::causal, fine},
    {{1, 3, 1, 350, 350, 64}, {1, 0}, mask::causal, wide},
    {{1, 6, 2, 257, 511, 128}, {37, 3}, mask::causal, fine},
    {{1, 6, 2, 511, 257, 64}, {37, 3}, mask::causal, wide},
    {{1, 2, 1, 300, 300, 64}, {1000, 4}, mask::causal, {}},
    {{1, 2, 1, 300, 300, 64}, {20, 500}, mask::causal, fine},
    {{1, 2, 1, 300, 300, 64}, {20, 100}, mask::causal, fine},
    {{1, 4, 2, 300, 300, 64}, {33, 4}, mask::full, fine},
    {{1, 4, 2, 290, 350, 128}, {17, 4}, mask::full, wide},
    {{1, 4, 1, 200, 300, 64}, {0, 0}, mask::full, {}},
    {{1, 7, 1, 300, 300, 128}, {48, 4}, mask::causal, wide, layout::tokens_first},
    {{1, 4, 2, 300, 300, 64}, {48, 4}, mask::causal, wide, layout::odd},
    {{1, 16, 1, 200, 400, 64}, {48, 4}, mask::causal, fine},
    {{1, 40, 1, 150, 150, 64}, {16, 0}, mask::causal, {.block = 5, .per_level = 3}},
    {{1, 2, 1, 200, 3000, 64}, {16, 0}, mask::causal, {.block = 2, .per_level = 1 << 20}},
    {{1, 4, 2, 300, 300, 128}, {32, 4}, mask::causal, wide, layout::plain, 0, {}, {}, 4.f},
    {{1, 4, 2, 300, 300, 64}, {32, 4}, mask::causal, bound},
    {{1, 4, 2, 300, 300, 128}, {0, 0}, mask::causal, bound, layout::plain, 0, {}, {}, 3.f},
    {{1, 2, 1, 200, 260, 64}, {20, 4}, mask::full, bound},
    {{3, 4, 2, 200, 260, 64},
     {20, 4},
     mask::causal,
     fine,
     layout::plain,
     0,
     {200, 70, 0},
     {260, 33, 5}},
    {{2, 4, 2, 200, 260, 128}, {20, 4}, mask::full, wide, layout::odd, 0, {77, 200}, {150, 129}},
    {{1, 1, 1, 1, 1, 64}, {0, 0}, mask::causal, {}},
    {{1, 1, 1, 1, 700, 64}, {5, 1}, mask::causal, fine},
};

setting with_dim_of(setting s, int dim) {
  s.shape.dim = dim;
  return s;
}

TEST_CASE("far mass, bfloat16") {
  for (setting const& s : far_settings) check_far<bfloat16>(s);
  check_far<bfloat16>({{1, 2, 1, 200, 2100, 64}, {64, 4}, mask::causal, flat});
}

TEST_CASE("far mass, half, float and D 256") {
  for (int n : {0, 1, 4, 9, 13, 17, 18, 21}) {
    check_far<omnisparse::half>(far_settings[n]);
    check_far<float>(far_settings[n]);
    check_far<bfloat16>(with_dim_of(far_settings[n], 256));
  }
  check_far<float>(with_dim_of(far_settings[1], 256));
}

// One to five products a tile, tiles after tiles, rows of several warps and of none.
TEST_CASE("far mass, lists of any length") {
  check_far<bfloat16>(
      {{1, 2, 1, 200, 3000, 128}, {16, 0}, mask::causal, {.block = 2, .per_level = 40}});
  check_far<bfloat16>({{1, 3, 1, 300, 3000, 64},
                       {100, 16},
                       mask::full,
                       {.block = 4, .per_level = 7},
                       layout::tokens_first});
  check_far<bfloat16>(
      {{1, 3, 1, 70, 2000, 256}, {16, 0}, mask::causal, {.block = 8, .per_level = 9}, layout::odd});
  check_far<omnisparse::half>({{1, 14, 2, 500, 900, 128}, {64, 4}, mask::causal, {}});
  check_far<float>({{1, 2, 1, 100, 1500, 256}, {16, 0}, mask::full, {.block = 2, .per_level = 30}});
}

setting const probe_settings[] = {
    {{1, 4, 2, 300, 300, 64}, {32, 4}},
    {{1, 7, 1, 777, 777, 128}, {64, 4}, mask::causal, {}, layout::plain, 256},
    {{1, 2, 2, 400, 400, 128}, {0, 0}, mask::causal, {}, layout::plain, 100},
    {{1, 6, 2, 257, 911, 128}, {37, 3}, mask::causal, {}, layout::tokens_first, 64},
    {{1, 6, 2, 511, 257, 64}, {37, 3}, mask::causal, {}, layout::odd, 90},
    {{1, 2, 1, 300, 300, 64}, {1000, 4}},
    {{1, 2, 1, 300, 300, 64}, {1, 500}},
    {{1, 4, 2, 300, 300, 64}, {33, 4}, mask::full, {}, layout::plain, 128},
    {{1, 4, 1, 600, 700, 128}, {100, 130}, mask::full, {}, layout::plain, 300},
    {{2, 4, 2, 200, 260, 64}, {20, 4}, mask::causal, {}, layout::plain, 64, {200, 70}, {260, 33}},
    {{2, 4, 2, 200, 260, 128}, {20, 4}, mask::full, {}, layout::odd, 77, {77, 200}, {150, 129}},
    {{1, 16, 1, 200, 1100, 64}, {48, 4}, mask::causal, {}, layout::plain, 50},
    {{1, 1, 1, 1, 1, 64}, {0, 0}},
    {{1, 4, 2, 500, 500, 128}, {32, 4}, mask::causal, {}, layout::plain, 0, {}, {}, 4.f},
};

TEST_CASE("probes, bfloat16") {
  for (setting const& s : probe_settings) check_probe<bfloat16>(s);
  check_probe<bfloat16>(probe_settings[1], {.last = 0, .every = 1});  // every row
  check_probe<bfloat16>(probe_settings[3], {.last = 0, .every = 0});  // no row
}

TEST_CASE("probes, half, float and D 256") {
  for (int n : {0, 1, 4, 8, 9, 13}) {
    check_probe<omnisparse::half>(probe_settings[n]);
    check_probe<float>(probe_settings[n]);
    check_probe<bfloat16>(with_dim_of(probe_settings[n], 256));
  }
  check_probe<float>(with_dim_of(probe_settings[7], 256));
}

bool has_hopper() {
  status const s = launch::hopper_can_run<bfloat16>({1, 1, 1, 1, 1, 64});
  if (!s.ok()) MESSAGE(std::string(s.message));
  return s.ok();
}

TEST_CASE_TEMPLATE("probes by Hopper's products", T, bfloat16, omnisparse::half) {
  if (!has_hopper()) return;
  for (setting s : probe_settings) {
    if (s.order == layout::odd) s.order = layout::tokens_first;  // the copy engine reads no other
    check_probe<T, true>(s);
  }
  check_probe<T, true>(probe_settings[3], {.last = 0, .every = 0});  // no row
}

TEST_CASE_TEMPLATE("many probes by Hopper's products", T, bfloat16, omnisparse::half) {
  if (!has_hopper()) return;
  check_probe<T, true>(probe_settings[1], {.last = 0, .every = 1});  // more pairs than stay
  check_probe<T, true>(probe_settings[11], {.last = 30, .every = 1});
  // Pairs that just stay, and one more; key tiles at and beside their borders.
  for (int const kv : {191, 192, 193, 577}) {
    check_probe<T, true>({{1, 7, 1, 64, kv, 64}, {20, 4}}, {.last = 64});
    check_probe<T, true>({{1, 1, 1, kv, kv, 128}, {7, 4}}, {.last = 449, .every = 0});
  }
  // Several key tiles a block, and several lists: all slots taken by each, some, more than there
  // are.
  check_probe<T, true>({{4, 16, 8, 600, 9000, 64}, {500, 4}, mask::full, {}, layout::plain, 300},
                       {.last = 2, .every = 0});
  for (int const last : {300, 448, 450}) {
    check_probe<T, true>({{4, 8, 8, 900, 900, 64}, {20, 4}, mask::causal, {}, layout::plain, 450},
                         {.last = last, .every = 0});
  }
}

// Heads of other dimensions than the kernels, and scales that are not 1 / sqrt D.
setting with_head(setting s, int dim, double scale) {
  s.shape.dim = dim;
  s.scale.value = scale;
  return s;
}

struct head {
  int dim;
  double scale;
};
constexpr head heads[] = {{16, 0},    {24, 0.3}, {40, 0},     {56, 0.05}, {64, 0.07}, {72, 0},
                          {80, 0.2},  {96, 0},   {112, 0.05}, {120, 0},   {128, 0.2}, {136, 0},
                          {160, 0.1}, {192, 0},  {248, 0.04}, {256, 0.1}};

TEST_CASE("observations of heads of any dimension, under any scale") {
  int n = 0;
  for (auto const [dim, scale] : heads) {
    ++n;
    for (int const at : {2, 9, 13, 17, 19, 21, 22}) {
      setting const s = with_head(far_settings[at], dim, scale);
      if ((n + at) % 3 == 0) check_far<bfloat16>(s);
      if ((n + at) % 3 == 1) check_far<omnisparse::half>(s);
      if ((n + at) % 3 == 2) check_far<float>(s);
    }
    for (int const at : {3, 4, 8, 10}) {
      setting const s = with_head(probe_settings[at], dim, scale);
      if ((n + at) % 3 == 0) check_probe<bfloat16>(s);
      if ((n + at) % 3 == 1) check_probe<omnisparse::half>(s);
      if ((n + at) % 3 == 2) check_probe<float>(s);
    }
    setting s = with_head({{1, 4, 2, 300, 300, 0}, {32, 4}, mask::causal, fine}, dim, scale);
    s.order = n % 2 == 0 ? layout::odd : layout::plain;
    s.chunk_rows = 100;
    check_rescue<bfloat16>(s, testing::plan_kind::random);
    check_contrast<bfloat16>(s, 3, pool_range::past);
    check_contrast<float>(s, 70, pool_range::whole_call);
  }
}

TEST_CASE_TEMPLATE("probes by Hopper's products of any dimension, under any scale", T, bfloat16,
                   omnisparse::half) {
  if (!has_hopper()) return;
  for (auto const [dim, scale] : heads) {
    if (dim > 128) continue;
    check_probe<T, true>(with_head(probe_settings[3], dim, scale));
    check_probe<T, true>(with_head(probe_settings[9], dim, scale));
    check_probe<T, true>(with_head(probe_settings[1], dim, scale), {.last = 0, .every = 1});
  }
}

TEST_CASE("rescue") {
  using testing::plan_kind;
  setting s{{1, 4, 2, 300, 300, 64}, {32, 4}, mask::causal, fine, layout::plain, 100};
  for (plan_kind const kind : testing::plan_kinds) check_rescue<bfloat16>(s, kind);
  check_rescue<bfloat16>({{1, 7, 1, 300, 400, 128}, {20, 4}, mask::full, wide, layout::plain, 128},
                         plan_kind::clustered);
  check_rescue<omnisparse::half>(
      {{1, 6, 2, 400, 300, 128}, {0, 0}, mask::causal, {}, layout::odd, 64}, plan_kind::random);
  check_rescue<float>({{1, 4, 2, 300, 300, 64}, {50, 4}, mask::causal, fine}, plan_kind::random);
  check_rescue<bfloat16>({{2, 4, 2, 200, 260, 64},
                          {20, 4},
                          mask::causal,
                          fine,
                          layout::plain,
                          64,
                          {200, 70},
                          {260, 33}},
                         plan_kind::random);
  check_rescue<bfloat16>(
      {{1, 4, 2, 300, 300, 128}, {32, 4}, mask::causal, bound, layout::plain, 64},
      plan_kind::clustered);
  check_rescue<bfloat16>({{1, 4, 2, 200, 200, 256}, {32, 4}, mask::causal, wide, layout::plain, 64},
                         plan_kind::random);
}

TEST_CASE("contrast") {
  for (pool_range const range : {pool_range::past, pool_range::whole_call}) {
    for (int const first : {1, 3, 70, 1000}) {
      check_contrast<bfloat16>({{1, 4, 2, 300, 300, 64}, {32, 4}}, first, range);
      check_contrast<bfloat16>({{1, 7, 1, 511, 257, 128}, {32, 4}}, first, range);
      check_contrast<omnisparse::half>(
          {{1, 4, 2, 100, 400, 128}, {32, 4}, mask::full, {}, layout::odd}, first, range);
      check_contrast<float>({{2, 4, 2, 200, 260, 64},
                             {20, 4},
                             mask::causal,
                             {},
                             layout::plain,
                             0,
                             {200, 70},
                             {260, 33}},
                            first, range);
    }
    check_contrast<bfloat16>({{1, 6, 2, 300, 300, 256}, {32, 4}}, 1, range);
  }
}

}  // namespace
