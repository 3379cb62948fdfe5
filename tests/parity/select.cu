// Selection and packing on the GPU against the same rules written plainly, in double precision.
#include <omnisparse/backend/cuda/pack.cuh>
#include <omnisparse/backend/cuda/select.cuh>
#include <omnisparse/budget/dense.hpp>
#include <omnisparse/budget/fixed.hpp>
#include <omnisparse/budget/flattest_head.hpp>
#include <omnisparse/budget/guaranteed.hpp>
#include <omnisparse/budget/per_head.hpp>
#include <omnisparse/budget/ratio.hpp>
#include <omnisparse/rescue/none.hpp>
#include <omnisparse/scorer/column_mass.hpp>
#include <omnisparse/selector/all.hpp>
#include <omnisparse/slim/none.hpp>
#include <omnisparse/testing/archetypes.hpp>
#include <omnisparse/testing/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using namespace omnisparse;

void check_cuda(cudaError_t error) {
  REQUIRE_MESSAGE(error == cudaSuccess, std::string(cudaGetErrorString(error)));
}

std::size_t count(std::int64_t n) { return static_cast<std::size_t>(n); }

// Device memory with a guard behind it, full of 0xff bytes until it is set.
template <class T>
class array {
 public:
  explicit array(std::size_t size) : size_(size), memory_(size * sizeof(T) + guard) { poison(); }
  explicit array(std::vector<T> const& values) : array(values.size()) { set(values); }
  void poison() const { check_cuda(cudaMemset(memory_.data(), 0xff, size_ * sizeof(T) + guard)); }
  void set(std::vector<T> const& values) const {
    if (size_ == 0) return;
    check_cuda(cudaMemcpy(data(), values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  T* data() const { return static_cast<T*>(memory_.data()); }
  std::vector<T> get() const {
    std::vector<unsigned char> tail(guard);
    std::vector<T> values(size_);
    check_cuda(cudaMemcpy(values.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost));
    check_cuda(cudaMemcpy(tail.data(), data() + size_, guard, cudaMemcpyDeviceToHost));
    bool const whole = std::all_of(tail.begin(), tail.end(), [](auto x) { return x == 0xff; });
    CHECK_MESSAGE(whole, "written behind the end");
    return values;
  }

 private:
  static constexpr std::size_t guard = 1024;
  std::size_t size_;
  buffer<device> memory_;
};

// Everything that lists are chosen from.
struct problem {
  std::string name;
  attention_shape shape;
  near_field near;
  mask limit = mask::causal;
  int chunk_rows = 1;
  chunk_range range;
  int capacity = 0;
  std::vector<int> q_lengths = {}, kv_lengths = {};
  std::vector<segment> kinds = {};
  int keys = 0;
  std::vector<float> mass = {}, score = {};  // [lists, keys]
  std::vector<int> pairs = {};               // [lists]

  int chunks() const { return ceil_div(shape.q_tokens, chunk_rows); }
  sequence_extent extent(int b) const {
    return {
        q_lengths.empty() ? shape.q_tokens : clamped(q_lengths[count(b)], 0, shape.q_tokens),
        kv_lengths.empty() ? shape.kv_tokens : clamped(kv_lengths[count(b)], 0, shape.kv_tokens)};
  }
  int rows(int b, int c) const {
    return clamped(extent(b).q_tokens - c * chunk_rows, 0, chunk_rows);
  }
  far_candidates far(int b, int c) const {
    sequence_extent const e = extent(b);
    if (rows(b, c) == 0) return {};
    return candidates_of(near, e.position(c * chunk_rows),
                         e.position(c * chunk_rows + rows(b, c) - 1), e.kv_tokens, limit);
  }
  bool is_text(int b, int j) const {
    return !kinds.empty() && kinds[count(b) * count(shape.kv_tokens) + count(j)] == segment::text;
  }
};

problem make_problem(attention_shape shape, near_field near, mask limit = mask::causal,
                     int chunk_rows = 0) {
  problem p;
  p.shape = shape;
  p.near = near;
  p.limit = limit;
  p.chunk_rows = chunk_rows > 0 ? chunk_rows : larger(1, shape.q_tokens);
  p.range = {0, p.chunks()};
  p.capacity = shape.kv_tokens;
  p.keys = round_up(larger(1, shape.kv_tokens), 128);
  return p;
}

enum class content { smooth, dyadic, few_levels, equal, zeros, one_key, wild, apart };
constexpr content contents[] = {content::smooth, content::dyadic, content::few_levels,
                                content::equal,  content::zeros,  content::one_key,
                                content::wild,   content::apart};
constexpr char const* content_names[] = {"smooth", "dyadic",  "few levels", "equal",
                                         "zeros",  "one key", "wild",       "apart"};

// Are all sums of these masses exact in double and in fixed point?
bool is_exact(content what) { return what != content::smooth; }

// Masses and scores. What is no candidate is NaN: it must not be looked at.
void fill(problem& p, content what, std::uint64_t seed) {
  testing::generator random(seed);
  int const lists = p.range.lists(p.shape), heads = p.shape.kv_heads;
  p.mass.assign(count(lists) * count(p.keys), NAN);
  p.score = p.mass;
  p.pairs.assign(count(lists), 0);
  for (int list = 0; list < lists; ++list) {
    int const b = p.range.batch_of(list, heads), c = p.range.chunk_of(list, heads);
    far_candidates const far = p.far(b, c);
    p.pairs[count(list)] = p.rows(b, c) == 0 ? 0 : 128 + 7 * (list % 3);
    double const room = 0.9 * p.pairs[count(list)] / larger(1, far.size());
    int const most = static_cast<int>(larger(1.0, room * 1048576.0));
    int const chosen = random.below(larger(1, far.size()));
    float const sharpness = 0.5f + static_cast<float>(list % 5);
    for (int n = 0; n < far.size(); ++n) {
      float m = static_cast<float>(random.below(most)) / 1048576.f;
      float const noise = random.normal();
      if (what == content::smooth) {
        m = static_cast<float>(room * std::exp2(static_cast<double>(noise * sharpness) - 4));
      }
      if (what == content::few_levels)
        m = static_cast<float>(most / 4 * random.below(4)) / 1048576.f;
      if (what == content::equal) m = static_cast<float>(most) / 1048576.f;
      if (what == content::zeros) m = 0;
      if (what == content::one_key)
        m = n == chosen ? static_cast<float>(p.pairs[count(list)]) : 0.f;
      float s = m;
      if (what == content::apart) s = 0.125f * static_cast<float>(random.below(1000));
      if (what == content::wild) {
        float const odd[] = {NAN,       -NAN,   -0.f,    0.f,  INFINITY,
                             -INFINITY, 1e-42f, -1e-42f, -3.f, 3e38f};
        s = random.below(2) == 0 ? odd[random.below(10)] : noise;
      }
      std::size_t const at = count(list) * count(p.keys) + count(far.key(n));
      p.mass[at] = m;
      p.score[at] = s;
    }
    if (what == content::smooth) {  // no more than there is
      float* const masses = p.mass.data() + count(list) * count(p.keys);
      double sum = 0;
      for (int n = 0; n < far.size(); ++n) sum += static_cast<double>(masses[far.key(n)]);
      double const over = sum / (0.9 * p.pairs[count(list)]);
      for (int n = 0; over > 1 && n < far.size(); ++n) {
        float& m = masses[far.key(n)];
        m = static_cast<float>(static_cast<double>(m) / over);
        p.score[count(list) * count(p.keys) + count(far.key(n))] = m;
      }
    }
  }
}

// One list by the rules.
struct plain_list {
  std::vector<int> ranked = {}, texts = {};  // best first; ascending
  std::vector<double> sums = {};             // near, text and the best n, n <= ranked.size()
  double total = 0, wanted = 0, concentration = INFINITY;
  int reach = 0;
};

plain_list rank_list(problem const& p, int list, float recall, flatness_by by) {
  int const heads = p.shape.kv_heads;
  int const b = p.range.batch_of(list, heads), c = p.range.chunk_of(list, heads);
  plain_list l;
  far_candidates const far = p.far(b, c);
  for (int n = 0; n < far.size(); ++n) {
    (p.is_text(b, far.key(n)) ? l.texts : l.ranked).push_back(far.key(n));
  }
  auto const mass = [&](int j) {
    return static_cast<double>(p.mass[count(list) * count(p.keys) + count(j)]);
  };
  auto const score = [&](int j) {
    float const s = p.score[count(list) * count(p.keys) + count(j)];
    return s == s ? s : -INFINITY;
  };
  l.total = p.pairs[count(list)];
  l.wanted = static_cast<double>(recall) * l.total;
  double far_mass = 0;
  std::vector<double> masses;
  for (int const j : l.ranked) masses.push_back(mass(j)), far_mass += mass(j);
  std::stable_sort(l.ranked.begin(), l.ranked.end(),
                   [&](int x, int y) { return score(x) > score(y); });
  l.sums.push_back(l.total - far_mass);
  for (int const j : l.ranked) l.sums.push_back(l.sums.back() + mass(j));
  while (l.reach < static_cast<int>(l.ranked.size()) && l.sums[count(l.reach)] < l.wanted) {
    ++l.reach;
  }
  if (far_mass > 0) {
    l.concentration = 0;
    std::sort(masses.begin(), masses.end(), std::greater<>{});
    std::size_t const top = (masses.size() + 19) / 20;
    for (std::size_t n = 0; n < masses.size(); ++n) {
      double const share = masses[n] / far_mass;
      if (by == flatness_by::simpson) l.concentration += share * share;
      if (by == flatness_by::top_share && n < top) l.concentration += share;
      if (by == flatness_by::entropy && share > 0) l.concentration += share * std::log(share);
    }
  }
  return l;
}

// What a launch left behind.
struct outcome {
  std::vector<int> kept, counts, reach;
  std::vector<float> recalls;
  std::vector<double> concentration;

  friend bool operator==(outcome const& x, outcome const& y) {
    auto const same = [](auto const& a, auto const& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
    };
    return same(x.kept, y.kept) && same(x.counts, y.counts) && same(x.reach, y.reach) &&
           same(x.recalls, y.recalls) && same(x.concentration, y.concentration);
  }
};

// The problem in device memory.
template <class Budget, class Scorer = scorer::column_mass>
class bench {
 public:
  bench(problem const& p, Budget budget)
      : shape_(p.shape),
        lists_(count(p.range.lists(p.shape))),
        mass_(p.mass),
        score_(p.score),
        pairs_(p.pairs),
        kinds_(p.kinds),
        q_lengths_(p.q_lengths),
        kv_lengths_(p.kv_lengths),
        plan_lists_(count(p.shape.batch) * count(p.chunks()) * count(p.shape.kv_heads)),
        kept_(plan_lists_ * count(p.capacity)),
        counts_(plan_lists_),
        recalls_(plan_lists_),
        reach_(lists_),
        concentration_(lists_) {
    policies_.budget = budget;
    policies_.near = p.near;
    policies_.limit = p.limit;
    call_.shape = p.shape;
    int const one[1] = {p.shape.batch}, two[2] = {p.shape.batch, p.shape.kv_tokens};
    if (!p.q_lengths.empty()) call_.in.q_lengths = {q_lengths_.data(), one};
    if (!p.kv_lengths.empty()) call_.in.kv_lengths = {kv_lengths_.data(), one};
    if (!p.kinds.empty()) call_.in.segments = {kinds_.data(), two};
    plan_ = {p.shape,      p.chunk_rows,   p.capacity,     nullptr,
             kept_.data(), counts_.data(), recalls_.data()};
    range_ = p.range;
    scores_ = {mass_.data(), score_.data(), pairs_.data(), p.keys};
  }
  void launch() const {
    launch::select_memory m;
    m.reached = {reach_.data(), concentration_.data()};
    status const s = launch::select(call_, policies_, plan_, range_, scores_, m, nullptr);
    REQUIRE_MESSAGE(s.ok(), s.message << ' ' << s.device_error);
  }
  outcome run() const {
    for (auto const* x : {&kept_, &counts_, &reach_}) x->poison();
    recalls_.poison();
    concentration_.poison();
    launch();
    check_cuda(cudaDeviceSynchronize());
    return {kept_.get(), counts_.get(), reach_.get(), recalls_.get(), concentration_.get()};
  }

 private:
  policy_set<selector::all, rescue::none, Scorer, Budget, slim::none, slim::none> policies_;
  attention_call<bfloat16, device> call_;
  attention_shape shape_;
  std::size_t lists_;
  array<float> mass_, score_;
  array<int> pairs_;
  array<segment> kinds_;
  array<int> q_lengths_, kv_lengths_;
  std::size_t plan_lists_;
  array<int> kept_, counts_;
  array<float> recalls_;
  array<int> reach_;
  array<double> concentration_;
  plan_view<device> plan_;
  chunk_range range_;
  scores_view scores_;
};

// The flattest head as published, but never more than a few tokens.
struct capped_flattest {
  using observes = observation::all_reaches;
  float recall = 0.9f;
  int most = 33;
  OMNISPARSE_HD constexpr int tokens(observes seen, kv_extent) const noexcept {
    return seen.reach[seen.flattest] < most ? seen.reach[seen.flattest] : most;
  }
};

template <class Budget, class Scorer = scorer::column_mass>
void check(problem const& p, Budget const& budget, bool exact, std::string const& name) {
  constexpr bool reaching = !std::is_same_v<observed<Budget>, observation::nothing>;
  constexpr bool comparing = std::is_same_v<observed<Budget>, observation::all_reaches>;
  constexpr bool probed = reaching || std::is_same_v<observed<Scorer>, observation::probe_mass>;
  std::string const where = p.name + ", " + name;
  outcome const got = bench<Budget, Scorer>(p, budget).run();
  int const heads = p.shape.kv_heads, lists = p.range.lists(p.shape);
  std::vector<plain_list> plain;
  for (int list = 0; list < lists; ++list) {
    plain.push_back(rank_list(p, list, detail::recall_of(budget), detail::flatness_of(budget)));
  }
  std::vector<bool> written(got.counts.size(), false);
  for (int list = 0; list < lists; ++list) {
    plain_list const& l = plain[count(list)];
    int const b = p.range.batch_of(list, heads), c = p.range.chunk_of(list, heads),
              g = list % heads;
    std::string const at = where + ", list " + std::to_string(list);
    kv_extent const kv{static_cast<int>(l.ranked.size())};
    int wanted = 0, flattest = 0;
    if constexpr (reaching) {
      int const reach = got.reach[count(list)];
      double const near = exact ? 0 : 1e-7 * l.total;
      bool const right = exact ? reach == l.reach
                               : reach >= 0 && reach <= kv.tokens &&
                                     l.sums[count(reach)] >= l.wanted - near &&
                                     (reach == 0 || l.sums[count(reach - 1)] < l.wanted + near);
      CHECK_MESSAGE(right, at << ": reach " << reach << " not " << l.reach);
    }
    if constexpr (std::is_same_v<observed<Budget>, observation::own_reach>) {
      wanted = budget.tokens({got.reach[count(list)]}, kv);
    } else if constexpr (comparing) {
      double const x = got.concentration[count(list)], y = l.concentration;
      CHECK_MESSAGE((x == y || std::abs(x - y) <= 1e-6 * std::abs(y) + 1e-12),
                    at << ": concentration " << x << " not " << y);
      double const* const all = got.concentration.data() + (list - g);
      for (int h = 1; h < heads; ++h) flattest = all[h] < all[flattest] ? h : flattest;
      wanted = budget.tokens({got.reach.data() + (list - g), heads, flattest}, kv);
    } else {
      wanted = budget.tokens({}, kv);
    }
    int const texts = static_cast<int>(l.texts.size());
    int const tokens = smaller(clamped(wanted, 0, kv.tokens), larger(0, p.capacity - texts));
    std::vector<int> kept = l.texts;
    kept.resize(count(smaller(texts, p.capacity)));
    kept.insert(kept.end(), l.ranked.begin(), l.ranked.begin() + tokens);
    std::sort(kept.begin(), kept.end());
    auto const to = count((std::int64_t{b} * p.chunks() + c) * heads + g);
    written[to] = true;
    CHECK_MESSAGE(got.counts[to] == static_cast<int>(kept.size()),
                  at << ": count " << got.counts[to] << " not " << kept.size());
    kept.resize(count(p.capacity), -1);  // what was not written stays poison
    int const* const theirs = got.kept.data() + to * count(p.capacity);
    auto const first = std::mismatch(kept.begin(), kept.end(), theirs).first - kept.begin();
    bool const same = first == static_cast<std::ptrdiff_t>(kept.size());
    CHECK_MESSAGE(same, at << ": entry " << first << " is " << theirs[same ? 0 : first] << " not "
                           << kept[same ? 0 : count(first)] << " of " << tokens << " + " << texts);
    double const recall = !probed ? -1 : l.total > 0 ? l.sums[count(tokens)] / l.total : 1;
    CHECK_MESSAGE(std::abs(static_cast<double>(got.recalls[to]) - recall) <= 1e-6,
                  at << ": recall " << got.recalls[to] << " not " << recall);
  }
  for (std::size_t n = 0; n < written.size(); ++n) {
    if (!written[n]) CHECK_MESSAGE(got.counts[n] == -1, where << ": list " << n << " is not ours");
  }
}

// Every budget that ships, and two of a user's.
void check_budgets(problem const& p, bool exact) {
  int const n = p.shape.kv_tokens;
  check(p, budget::flattest_head{.recall = 0.9f}, exact, "simpson");
  check(p, budget::flattest_head{.recall = 0.95f, .flatness = flatness_by::top_share}, exact,
        "top");
  check(p, budget::flattest_head{.recall = 0.8f, .flatness = flatness_by::entropy}, exact,
        "entropy");
  check(p, budget::guaranteed{.recall = 1.f}, exact, "guaranteed");
  check(p, budget::per_head{.recall = 0.5f}, exact, "per head");
  check(p, budget::per_head{.recall = 0.f}, exact, "recall 0");
  for (int const tokens : {0, 1, n / 10, n - 1, n}) {
    check(p, budget::fixed{tokens}, exact, "fixed " + std::to_string(tokens));
  }
  check(p, budget::fixed{-5}, exact, "fixed -5");
  check(p, budget::ratio{0.3f}, exact, "ratio");
  check(p, budget::dense{}, exact, "dense");
  check(p, capped_flattest{}, exact, "capped");
  check(p, testing::half_reach{}, exact, "half reach");
  check<budget::fixed, testing::oldest_first>(p, {n / 3}, exact, "not probed");
}

void check_contents(problem& p, std::uint64_t seed) {
  std::string const name = p.name;
  for (content const what : contents) {
    fill(p, what, seed);
    p.name = name + " " + content_names[static_cast<int>(what)];
    check_budgets(p, is_exact(what));
  }
  p.name = name;
}

std::vector<segment> mixed_kinds(attention_shape const& s, std::uint64_t seed) {
  testing::generator random(seed);
  std::vector<segment> kinds(count(s.batch) * count(s.kv_tokens));
  for (auto& k : kinds) k = random.below(5) == 0 ? segment::text : segment::visual;
  return kinds;
}

}  // namespace

TEST_CASE("lists of all lengths hold the best keys") {
  for (int const n : {1, 2, 5, 127, 128, 129, 1000, 4097, 5000}) {
    problem p = make_problem({1, 2, 2, 1, n, 64}, {.window = 1, .sinks = 0});
    p.name = "N " + std::to_string(n);
    check_contents(p, count(n));
  }
}

TEST_CASE("lists that need several CTAs") {
  for (int const n : {4096, 8193, 16387, 32770, 131072}) {
    problem p = make_problem({1, 2, 2, 40, n, 64}, {.window = 16, .sinks = 5});
    p.name = "N " + std::to_string(n);
    for (content const what : {content::smooth, content::few_levels, content::wild}) {
      fill(p, what, count(n));
      p.name = "N " + std::to_string(n) + " " + content_names[static_cast<int>(what)];
      check_budgets(p, is_exact(what));
    }
  }
  problem p = make_problem({1, 2, 2, 40, 131072, 64}, {.window = 1024, .sinks = 16});
  p.kinds = mixed_kinds(p.shape, 3);
  for (content const what : contents) {
    fill(p, what, 5);
    p.name = std::string("N 131072 with text ") + content_names[static_cast<int>(what)];
    check(p, budget::flattest_head{.flatness = flatness_by::top_share}, is_exact(what), "top");
    check(p, budget::per_head{.recall = 0.99f}, is_exact(what), "per head");
    check(p, budget::ratio{0.1f}, is_exact(what), "ratio");
  }
}

TEST_CASE("a list longer than a cluster reads at once") {
  problem p = make_problem({1, 2, 2, 3, 700001, 64}, {.window = 3, .sinks = 2});
  for (content const what : {content::smooth, content::equal}) {
    fill(p, what, 11);
    p.name = std::string("N 700001 ") + content_names[static_cast<int>(what)];
    check(p, budget::flattest_head{}, is_exact(what), "simpson");
    check(p, budget::fixed{70000}, is_exact(what), "fixed");
  }
}

// The later digits are searched among the keys that share the threshold's first one: in a pool
// where they fit it, else again among all. Lengths around the tile of a CTA, and of a team.
TEST_CASE("few or many keys share the first digit of the threshold") {
  constexpr int few = collective::key_pool<collective::tally>::room;
  constexpr int many = collective::key_pool<unsigned>::room;
  for (int const candidates : {2048, 2049, 16384, 131072, 131073}) {
    problem p = make_problem({1, 2, 2, 1, candidates + 1, 64}, {.window = 1, .sinks = 0});
    fill(p, content::dyadic, count(candidates));
    for (int const alike : {1, 700, few, few + 1, many, many + 1}) {
      if (alike > candidates / 2) continue;
      for (int const levels : {1, 1 << 20}) {
        testing::generator random(count(alike + levels));
        std::vector<int> order(count(candidates));
        for (int j = 0; j < candidates; ++j) order[count(j)] = j;
        for (auto& j : order) std::swap(j, order[count(random.below(candidates))]);
        int const above = candidates / 4;
        double mass =
            p.pairs[0];  // of the first list, but for keys below the middle of those alike
        for (int n = 0; n < candidates; ++n) {
          bool const equals = n >= above && n < above + alike;
          float const score = equals ? 1.f + static_cast<float>(random.below(levels)) / 4194304.f
                                     : (n < above ? 2.f : 0.25f) * (1.5f + 0.4f * random.uniform());
          auto const j = count(order[count(n)]);
          p.score[j] = p.score[count(p.keys) + j] = score;
          if (n >= above + alike / 2) mass -= static_cast<double>(p.mass[j]);
        }
        p.name = "N " + std::to_string(candidates) + ", alike " + std::to_string(alike) +
                 ", levels " + std::to_string(levels);
        for (int const tokens : {above + 1, above + (alike + 1) / 2, above + alike}) {
          check(p, budget::fixed{tokens}, true, "fixed " + std::to_string(tokens));
        }
        auto const recall = static_cast<float>(mass / p.pairs[0]);
        check(p, budget::per_head{.recall = recall}, true, "per head");
      }
    }
  }
}

TEST_CASE("batches, chunks, ranges, ragged lengths, segments, both masks") {
  for (mask const limit : {mask::causal, mask::full}) {
    for (bool const texts : {false, true}) {
      problem p = make_problem({3, 4, 2, 300, 517, 64}, {.window = 40, .sinks = 3}, limit, 64);
      p.q_lengths = {300, 130, 0};
      p.kv_lengths = {517, 200, 40};
      if (texts) p.kinds = mixed_kinds(p.shape, 7);
      p.name = std::string(limit == mask::full ? "full" : "causal") + (texts ? " with text" : "");
      check_contents(p, 21);
      p.range = {2, 2};
      p.name += " chunks 2-3";
      check_contents(p, 22);
      p.range = {0, p.chunks()};
      for (int const capacity : {0, 7, 100}) {
        p.capacity = capacity;
        p.name = "capacity " + std::to_string(capacity) + (texts ? " with text" : "");
        fill(p, content::dyadic, 23);
        check_budgets(p, true);
      }
    }
  }
  problem p = make_problem({1, 2, 2, 1500, 40000, 64}, {.window = 12000, .sinks = 70}, mask::full);
  p.kinds = mixed_kinds(p.shape, 8);
  p.name = "full, two sides";
  check_contents(p, 31);
}

TEST_CASE("nothing to choose from") {
  problem near_only = make_problem({1, 2, 2, 8, 100, 64}, {.window = 200, .sinks = 0});
  near_only.name = "all near";
  check_contents(near_only, 1);
  problem no_keys = make_problem({2, 2, 2, 8, 0, 64}, {.window = 0, .sinks = 0});
  no_keys.name = "no keys";
  check_contents(no_keys, 2);
  problem text = make_problem({1, 2, 2, 8, 300, 64}, {.window = 4, .sinks = 2});
  text.kinds.assign(300, segment::text);
  text.name = "all text";
  check_contents(text, 3);
}

TEST_CASE("tiny masses are compared, damaged ones are bounded") {
  problem p = make_problem({1, 3, 3, 1, 3000, 64}, {.window = 1, .sinks = 0});
  p.name = "tiny";
  fill(p, content::smooth, 4);
  for (float& m : p.mass) m *= 1e-30f;
  p.score = p.mass;
  check(p, budget::flattest_head{}, false, "simpson");
  check(p, budget::flattest_head{.flatness = flatness_by::top_share}, false, "top");
  check(p, budget::flattest_head{.flatness = flatness_by::entropy}, false, "entropy");
  testing::generator random(9);
  float const odd[] = {NAN, -1.f, INFINITY, 1e30f, 0.f};
  for (float& m : p.mass) m = odd[random.below(5)];
  for (auto const by : {flatness_by::simpson, flatness_by::top_share, flatness_by::entropy}) {
    outcome const got = bench<budget::flattest_head>(p, {.recall = 0.7f, .flatness = by}).run();
    for (int list = 0; list < 3; ++list) {
      int const size = got.counts[count(list)];
      REQUIRE(size >= 0);
      REQUIRE(size <= p.capacity);
      int const* const kept = got.kept.data() + count(list) * count(p.capacity);
      for (int n = 0; n < size; ++n) REQUIRE(kept[n] > (n == 0 ? -1 : kept[n - 1]));
    }
  }
}

TEST_CASE("equal heads are equally flat, and the first of them counts") {
  problem p = make_problem({1, 3, 3, 1, 20000, 64}, {.window = 1, .sinks = 0});
  fill(p, content::smooth, 4);
  p.pairs.assign(3, 128);
  std::copy_n(p.mass.begin(), p.keys, p.mass.begin() + p.keys);  // head 1 is head 0,
  auto const third = p.mass.begin() + 2 * p.keys;                // head 2 is head 0 backwards
  std::copy_n(p.mass.begin(), 20000, third);
  std::reverse(third, third + 19999);
  for (auto const by : {flatness_by::simpson, flatness_by::top_share, flatness_by::entropy}) {
    outcome const got = bench<budget::flattest_head>(p, {.flatness = by}).run();
    CHECK(got.concentration[0] == got.concentration[1]);
    CHECK(got.concentration[0] == got.concentration[2]);
  }
}

TEST_CASE("the number of CTAs changes no bit") {
  problem small = make_problem({1, 2, 2, 64, 5000, 64}, {.window = 64, .sinks = 4});
  fill(small, content::smooth, 6);
  problem wide = small;  // the same sequence in a tensor that is padded far more
  wide.shape.kv_tokens = 131072;
  wide.kv_lengths = {5000};
  wide.keys = 131072;
  wide.mass.assign(2 * 131072, NAN);
  wide.score = wide.mass;
  for (int g = 0; g < 2; ++g) {
    std::copy_n(small.mass.begin() + g * small.keys, 5000, wide.mass.begin() + g * 131072);
    std::copy_n(small.score.begin() + g * small.keys, 5000, wide.score.begin() + g * 131072);
  }
  for (auto const by : {flatness_by::simpson, flatness_by::top_share, flatness_by::entropy}) {
    CHECK(bench<budget::flattest_head>(small, {.flatness = by}).run() ==
          bench<budget::flattest_head>(wide, {.flatness = by}).run());
  }
}

TEST_CASE("a thousand runs give the same bits") {
  problem p = make_problem({2, 2, 2, 64, 20000, 64}, {.window = 64, .sinks = 4});
  fill(p, content::smooth, 6);
  bench<budget::flattest_head> const b(p, {});
  outcome const first = b.run();
  int moved = 0;
  for (int n = 0; n < 1000; ++n) moved += b.run() == first ? 0 : 1;
  CHECK(moved == 0);
}

// Packing: every row against its source, zeros behind, nothing else written.
template <class T, int D>
void check_pack(int kv_tokens, int capacity, std::vector<int> const& sizes, bool tokens_first,
                chunk_range range, bool damaged) {
  attention_shape const s{2, 2, 2, 3, kv_tokens, D};
  testing::generator random(count(kv_tokens + capacity));
  near_field const near{.window = 4, .sinks = 5};
  std::vector<T> values(count(s.batch) * 2 * count(kv_tokens) * D);
  for (std::size_t n = 0; n < values.size(); ++n) values[n] = T(static_cast<float>(n % 2039));
  array<T> const k(values);
  std::reverse(values.begin(), values.end());
  array<T> const v(values);
  std::reverse(values.begin(), values.end());
  int const lists = 2 * 3 * 2, dims[4] = {2, 2, kv_tokens, D};
  std::vector<int> kept(count(lists) * count(capacity), -1), counts;
  for (int list = 0; list < lists; ++list) {
    int const size = sizes[count(list) % sizes.size()];
    std::vector<int> all(count(kv_tokens));
    for (int j = 0; j < kv_tokens; ++j) all[count(j)] = j;
    for (int n = 0; n < kv_tokens; ++n)
      std::swap(all[count(n)], all[count(random.below(kv_tokens))]);
    std::sort(all.begin(), all.begin() + size);
    if (damaged && size > 0) all[0] = -2000000000, all[count(size - 1)] = 2000000000;
    std::copy_n(all.begin(), size, kept.begin() + list * capacity);
    counts.push_back(damaged && list % 3 == 0 ? 2000000000 : damaged && list % 3 == 1 ? -7 : size);
  }
  array<int> const kept_memory(kept), count_memory(counts);
  attention_call<T, device> call;
  call.shape = s;
  auto const view = [&](array<T> const& x) {
    return tokens_first ? view_tokens_first<device>(static_cast<T const*>(x.data()), dims)
                        : tensor_view<T const, device>(x.data(), dims);
  };
  call.k = view(k);
  call.v = view(v);
  CHECK(launch::has_aligned_rows(call.k));
  plan_view<device> const plan{s, 1, capacity, nullptr, kept_memory.data(), count_memory.data()};
  int const per_list = round_up(capacity, 128);
  array<T> const to_k(count(range.lists(s)) * count(per_list) * D),
      to_v(count(range.lists(s)) * count(per_list) * D);
  packed_kv<T> const packed{to_k.data(), to_v.data(), per_list};
  REQUIRE(launch::pack_lists<T, D>(call, plan, near, range, packed, nullptr).ok());
  check_cuda(cudaDeviceSynchronize());
  auto const got_k = to_k.get(), got_v = to_v.get();
  T poison;
  std::memset(static_cast<void*>(&poison), 0xff, sizeof poison);
  int wrong = 0;
  for (int list = 0; list < range.lists(s); ++list) {
    int const b = range.batch_of(list, 2), c = range.chunk_of(list, 2), g = list % 2;
    std::size_t const from = count((b * 3 + c) * 2 + g);
    int const size = clamped(counts[from], 0, capacity);
    std::vector<int> entries(kept.begin() + static_cast<std::ptrdiff_t>(from) * capacity,
                             kept.begin() + static_cast<std::ptrdiff_t>(from) * capacity + size);
    int skipped = 0;
    for (int n = 0; n < smaller(size, near.sinks); ++n) skipped += entries[count(n)] < near.sinks;
    entries.erase(entries.begin(), entries.begin() + skipped);
    for (int row = 0; row < per_list; ++row) {
      bool const listed = row < static_cast<int>(entries.size());
      bool const zero = !listed && row < round_up(static_cast<int>(entries.size()), 128);
      for (int d = 0; d < D; ++d) {
        T want_k = zero ? T(0.f) : poison, want_v = want_k;
        if (listed) {
          int const j = clamped(entries[count(row)], 0, kv_tokens - 1);
          std::size_t const at =
              count(tokens_first ? ((std::int64_t{b} * kv_tokens + j) * 2 + g) * D + d
                                 : ((std::int64_t{b} * 2 + g) * kv_tokens + j) * D + d);
          want_k = values[at];
          want_v = values[values.size() - 1 - at];
        }
        std::size_t const to = (count(list) * count(per_list) + count(row)) * D + count(d);
        bool const same = std::memcmp(&got_k[to], &want_k, sizeof(T)) == 0 &&
                          std::memcmp(&got_v[to], &want_v, sizeof(T)) == 0;
        if (!same && wrong++ == 0) {
          CHECK_MESSAGE(same, "N " << kv_tokens << " D " << D << " list " << list << " row " << row
                                   << " of " << entries.size() << " d " << d);
        }
      }
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("packed rows are the listed rows, then zeros") {
  for (bool const tokens_first : {false, true}) {
    for (bool const damaged : {false, true}) {
      for (chunk_range const range : {chunk_range{0, 3}, chunk_range{1, 2}, chunk_range{2, 1}}) {
        check_pack<bfloat16, 128>(700, 700, {0, 1, 127, 128, 129, 700, 640}, tokens_first, range,
                                  damaged);
        check_pack<omnisparse::half, 64>(700, 130, {130, 3, 0, 128, 64}, tokens_first, range,
                                         damaged);
        check_pack<float, 128>(90, 90, {90, 40, 1, 0}, tokens_first, range, damaged);
      }
      check_pack<bfloat16, 128>(9000, 9000, {9000, 5000, 17}, tokens_first, {0, 3}, damaged);
      check_pack<omnisparse::half, 256>(1, 1, {1, 0}, tokens_first, {0, 3}, damaged);
    }
  }
}
