/// @file
/// Which keys each KV head of a chunk keeps: rank, reach, budget, and the ascending lists.
#pragma once

#include <omnisparse/backend/cpu/probe.hpp>
#include <omnisparse/plan/plan.hpp>

#include <cstdint>

namespace omnisparse::cpu {

/// Scores and indices in one integer: ascending order is score descending, then index ascending.
/// NaN ranks last; -0 ties with 0.
inline std::uint64_t rank_key(float score, int index) noexcept {
  float const folded = score == score ? score + 0.f : -__builtin_huge_valf();
  std::uint32_t const bits = __builtin_bit_cast(std::uint32_t, folded);
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
  if (!(sum > 0)) return __builtin_huge_val();
  double result = 0;
  if (by == flatness_by::top_share) {
    int const top = ceil_div(count, 20);
    for (int n = 0; n < count; ++n) shares[n] = mass[key(n)];
    std::nth_element(shares, shares + top - 1, shares + count, std::greater<>{});
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

/// Writes the lists of one (batch, chunk) for all KV heads into the plan.
template <class T, class Policies>
void select_chunk(attention_call<T, host> const& call, Policies const& policies,
                  plan_view<host> const& plan, int b, int c, sequence_extent extent,
                  attend_memory<accumulator_t<T>> const& m,
                  probe_memory<accumulator_t<T>> const& p) noexcept {
  using A = accumulator_t<T>;
  using scorer_sees = observed<decltype(policies.scorer)>;
  using budget_sees = observed<decltype(policies.budget)>;
  constexpr bool reaching = !std::same_as<budget_sees, observation::nothing>;
  constexpr bool probing = reaching || std::same_as<scorer_sees, observation::probe_mass>;
  constexpr bool comparing = std::same_as<budget_sees, observation::all_reaches>;
  attention_shape const& shape = call.shape;
  int const first = c * plan.chunk_rows;
  int const rows = std::min(plan.chunk_rows, extent.q_tokens - first);
  if (rows <= 0) {
    for (int g = 0; g < shape.kv_heads; ++g) {
      plan.kept_counts[plan.list(b, c, g)] = 0;
      plan.recalls[plan.list(b, c, g)] = probing ? 1.f : -1.f;
    }
    return;
  }
  far_candidates const far =
      candidates_of(policies.near, extent.position(first), extent.position(first + rows - 1),
                    extent.kv_tokens, policies.limit);
  auto const is_text = [&](int j) {
    return !call.in.segments.is_null() && call.in.segments(b, j) == segment::text;
  };
  int texts = 0;
  if (!call.in.segments.is_null()) {
    for (int n = 0; n < far.size(); ++n) texts += is_text(far.key(n));
  }
  kv_extent const kv{far.size() - texts};
  double total = 0;
  if constexpr (probing) {
    total = probe_chunk(call, policies.scorer, policies.near, policies.limit, b, extent, first, rows,
                        m, p);
  }
  parallel_for(m.threads, shape.kv_heads, [&](long long at, int) {
    A const* const mass = p.mass + at * p.keys;
    A const* const peak = p.peak + at * p.keys;
    int const* const seen = p.seen + at * p.keys;
    std::uint64_t* const rank = p.rank + at * p.keys;
    int ranked = 0;
    double far_mass = 0;
    for (int n = 0; n < far.size(); ++n) {
      int const j = far.key(n);
      if (is_text(j)) continue;
      token const t{j, segment::visual, false};
      if constexpr (std::same_as<scorer_sees, observation::probe_mass>) {
        rank[ranked++] = rank_key(policies.scorer.score({static_cast<float>(mass[j]),
                                                         static_cast<float>(peak[j]), seen[j]}, t), j);
      } else {
        rank[ranked++] = rank_key(policies.scorer.score({}, t), j);
      }
      if constexpr (probing) far_mass += static_cast<double>(mass[j]);
    }
    p.held[at] = total - far_mass;
    if constexpr (reaching) {
      if constexpr (comparing) {  // before the ranks are sorted: in index order
        p.concentration[at] = concentration(
            mass, [&](int n) { return ranked_index(rank[n]); }, ranked,
            detail::flatness_of(policies.budget), p.peak + at * p.keys);
      }
      std::sort(rank, rank + ranked);
      double const wanted = static_cast<double>(detail::recall_of(policies.budget)) * total;
      double sum = p.held[at];
      int reach = 0;
      for (; reach < ranked && sum < wanted; ++reach) {
        sum += static_cast<double>(mass[ranked_index(rank[reach])]);
      }
      p.reach[at] = reach;
    }
  });
  int flattest = 0;
  if constexpr (comparing) {
    for (int g = 1; g < shape.kv_heads; ++g) {
      if (p.concentration[g] < p.concentration[flattest]) flattest = g;
    }
  }
  parallel_for(m.threads, shape.kv_heads, [&](long long at, int) {
    std::uint64_t* const rank = p.rank + at * p.keys;
    int wanted = 0;
    if constexpr (std::same_as<budget_sees, observation::own_reach>) {
      wanted = policies.budget.tokens({p.reach[at]}, kv);
    } else if constexpr (comparing) {
      wanted = policies.budget.tokens({p.reach, shape.kv_heads, flattest}, kv);
    } else {
      wanted = policies.budget.tokens({}, kv);
    }
    int const count = smaller(clamped(wanted, 0, kv.tokens), larger(0, plan.capacity - texts));
    if (!reaching && count > 0 && count < kv.tokens) {
      std::nth_element(rank, rank + count - 1, rank + kv.tokens);
    }
    int const g = static_cast<int>(at);
    int* const kept = plan.kept_at(b, c, g);
    double sum = p.held[at];
    int size = 0;
    for (; size < count; ++size) {
      kept[size] = ranked_index(rank[size]);
      if constexpr (probing) sum += static_cast<double>(p.mass[at * p.keys + kept[size]]);
    }
    if (texts > 0) {
      for (int n = 0; n < far.size() && size < plan.capacity; ++n) {
        if (is_text(far.key(n))) kept[size++] = far.key(n);
      }
    }
    std::sort(kept, kept + size);
    plan.kept_counts[plan.list(b, c, g)] = size;
    float const recall = total > 0 ? static_cast<float>(sum / total) : 1.f;
    plan.recalls[plan.list(b, c, g)] = probing ? recall : -1.f;
  });
}

}  // namespace omnisparse::cpu
