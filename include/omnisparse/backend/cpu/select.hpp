/// @file
/// Which keys each KV head of a chunk keeps: rank, reach, budget, and the ascending lists.
#pragma once

#include <omnisparse/backend/cpu/probe.hpp>
#include <omnisparse/plan/plan.hpp>

#include <cstdint>

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

/// Orders of sorts: types of this target, so that what the standard library makes of them is too.
struct ascending {
  template <class A>
  constexpr bool operator()(A x, A y) const noexcept {
    return x < y;
  }
};
struct descending {
  template <class A>
  constexpr bool operator()(A x, A y) const noexcept {
    return x > y;
  }
};

/// Scores and indices in one integer: ascending order is score descending, then index ascending.
/// NaN ranks last; -0 ties with 0.
inline std::uint64_t rank_key(float score, int index) noexcept {
  std::uint32_t bits = __builtin_bit_cast(std::uint32_t, score);
  if (omnisparse::detail::magnitude_bits(score) == 0) bits = 0;
  if (is_nan(score)) bits = __builtin_bit_cast(std::uint32_t, empty_lse<float>());
  std::uint32_t const ascending = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
  return std::uint64_t{~ascending} << 32 | static_cast<std::uint32_t>(index);
}

inline int ranked_index(std::uint64_t key) noexcept { return static_cast<int>(key & 0xffffffffu); }

/// How concentrated a head's far mass is: larger is less flat; no mass is fully concentrated.
/// `key(n)`, n < count, are the indices of the candidates; `shares` [count] is scratch.
template <class A, class Key>
double concentration(A const* mass, Key key, int count, flatness_by by, A* shares) noexcept {
  double sum = 0;
  for (int n = 0; n < count; ++n) sum += static_cast<double>(mass[key(n)]);
  if (!(sum > 0)) return omnisparse::detail::unknown(__builtin_huge_val());
  double result = 0;
  if (by == flatness_by::top_share) {
    int const top = ceil_div(count, 20);
    for (int n = 0; n < count; ++n) shares[n] = mass[key(n)];
    std::nth_element(shares, shares + top - 1, shares + count, descending{});
    for (int n = 0; n < top; ++n) result += static_cast<double>(shares[n]) / sum;
    return result;
  }
  for (int n = 0; n < count; ++n) {
    double const share = static_cast<double>(mass[key(n)]) / sum;
    if (by == flatness_by::simpson) result += share * share;
    else if (share > 0) result += share * std::log(share);
  }
  return result;
}

/// The smallest count whose best-ranked candidates hold `wanted` together with `held`; all where
/// none does. Halves the open range of ranks instead of sorting them: linear time.
template <class A>
int reach_of(std::uint64_t* rank, int ranked, A const* mass, double held, double wanted) noexcept {
  int low = 0, high = ranked;  // the answer is in [low, high]; `held` counts what is before low
  while (high - low > 16) {
    int const middle = low + (high - low) / 2;
    std::nth_element(rank + low, rank + middle, rank + high, ascending{});
    double upper = held;
    for (int n = low; n < middle; ++n) upper += static_cast<double>(mass[ranked_index(rank[n])]);
    if (upper < wanted) {
      low = middle;
      held = upper;
    } else {
      high = middle;
    }
  }
  std::sort(rank + low, rank + high, ascending{});
  for (; low < high && held < wanted; ++low) {
    held += static_cast<double>(mass[ranked_index(rank[low])]);
  }
  return low;
}

/// Writes the lists of `count` chunks of sequence b, from chunk `first_chunk` on, into the plan.
template <class T, class Policies>
void select_chunks(attention_call<T, host> const& call, Policies const& policies,
                   plan_view<host> const& plan, int b, int first_chunk, int count,
                   sequence_extent extent, attend_memory<accumulator_t<T>> const& m,
                   probe_memory<accumulator_t<T>>& p) noexcept {
  using A = accumulator_t<T>;
  using scorer_sees = observed<decltype(policies.scorer)>;
  using budget_sees = observed<decltype(policies.budget)>;
  constexpr bool reaching = !std::same_as<budget_sees, observation::nothing>;
  constexpr bool probing = reaching || std::same_as<scorer_sees, observation::probe_mass>;
  constexpr bool comparing = std::same_as<budget_sees, observation::all_reaches>;
  attention_shape const& shape = call.shape;
  int const heads = shape.kv_heads;
  auto const is_text = [&](int j) {
    return !call.in.segments.is_null() && call.in.segments(b, j) == segment::text;
  };
  for (int n = 0; n < count; ++n) {
    probed_chunk& c = p.chunks[n];
    c = {};
    c.first = (first_chunk + n) * plan.chunk_rows;
    c.rows = larger(0, smaller(plan.chunk_rows, extent.q_tokens - c.first));
    if (c.rows == 0) continue;
    c.far = candidates_of(policies.near, extent.position(c.first),
                          extent.position(c.first + c.rows - 1), extent.kv_tokens, policies.limit);
    if (call.in.segments.is_null()) continue;
    for (int x = 0; x < c.far.size(); ++x) c.texts += is_text(c.far.key(x));
  }
  if constexpr (probing) {
    probe_chunks(call, policies.scorer, policies.near, policies.limit, b, extent, count, m, p);
  }
  auto const total_of = [&](probed_chunk const& c) {
    return static_cast<double>(c.probes) * shape.group();
  };
  parallel_for(m.threads, std::int64_t{count} * heads, [&](long long list, int) {
    int const chunk = static_cast<int>(list / heads);
    probed_chunk const& c = p.chunks[chunk];
    if (c.rows == 0) return;
    A const* const mass = p.mass_at(list);
    A const* const peak = p.peak_at(list);
    int const* const seen = p.seen_at(chunk);
    std::uint64_t* const rank = p.rank + list * p.keys;
    if constexpr (probing) join_parts(p, list, c.parts, extent.kv_tokens);
    int ranked = 0;
    double far_mass = 0;
    for (int n = 0; n < c.far.size(); ++n) {
      int const j = c.far.key(n);
      if (c.texts > 0 && is_text(j)) continue;
      token const t{j, segment::visual, false};
      if constexpr (std::same_as<scorer_sees, observation::probe_mass>) {
        rank[ranked++] =
            rank_key(policies.scorer.score(
                         {static_cast<float>(mass[j]), static_cast<float>(peak[j]), seen[j]}, t),
                     j);
      } else {
        rank[ranked++] = rank_key(policies.scorer.score({}, t), j);
      }
      if constexpr (probing) far_mass += static_cast<double>(mass[j]);
    }
    p.held[list] = total_of(c) - far_mass;
    if constexpr (reaching) {
      if constexpr (comparing) {  // before the ranks are sorted out: in index order
        p.concentration[list] = concentration(
            mass, [&](int n) { return ranked_index(rank[n]); }, ranked,
            detail::flatness_of(policies.budget), p.peak_at(list));
      }
      p.reach[list] =
          reach_of(rank, ranked, mass, p.held[list],
                   static_cast<double>(detail::recall_of(policies.budget)) * total_of(c));
    }
  });
  if constexpr (comparing) {
    for (int n = 0; n < count; ++n) {
      double const* const concentrations = p.concentration + std::ptrdiff_t{n} * heads;
      for (int g = 1; g < heads; ++g) {
        if (concentrations[g] < concentrations[p.chunks[n].flattest]) p.chunks[n].flattest = g;
      }
    }
  }
  parallel_for(m.threads, std::int64_t{count} * heads, [&](long long list, int) {
    int const chunk = static_cast<int>(list / heads), g = static_cast<int>(list % heads);
    probed_chunk const& c = p.chunks[chunk];
    std::int64_t const at = plan.list(b, first_chunk + chunk, g);
    plan.kept_counts[at] = 0;
    plan.recalls[at] = probing ? 1.f : -1.f;
    if (c.rows == 0) return;
    kv_extent const kv{c.far.size() - c.texts};
    std::uint64_t* const rank = p.rank + list * p.keys;
    int wanted = 0;
    if constexpr (std::same_as<budget_sees, observation::own_reach>) {
      wanted = policies.budget.tokens({p.reach[list]}, kv);
    } else if constexpr (comparing) {
      wanted =
          policies.budget.tokens({p.reach + std::ptrdiff_t{chunk} * heads, heads, c.flattest}, kv);
    } else {
      wanted = policies.budget.tokens({}, kv);
    }
    int const most = smaller(clamped(wanted, 0, kv.tokens), larger(0, plan.capacity - c.texts));
    if (most > 0 && most < kv.tokens) {
      std::nth_element(rank, rank + most - 1, rank + kv.tokens, ascending{});
    }
    int* const kept = plan.kept_at(b, first_chunk + chunk, g);
    double sum = p.held[list];
    int size = 0;
    for (; size < most; ++size) {
      kept[size] = ranked_index(rank[size]);
      if constexpr (probing) sum += static_cast<double>(p.mass_at(list)[kept[size]]);
    }
    if (c.texts > 0) {
      for (int n = 0; n < c.far.size() && size < plan.capacity; ++n) {
        if (is_text(c.far.key(n))) kept[size++] = c.far.key(n);
      }
    }
    std::sort(kept, kept + size, ascending{});
    plan.kept_counts[at] = size;
    double const total = total_of(c);
    if (probing && total > 0) plan.recalls[at] = static_cast<float>(sum / total);
  });
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
