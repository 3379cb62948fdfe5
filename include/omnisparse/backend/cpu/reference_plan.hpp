/// @file
/// The oracle of planning: observations and decisions in double precision, one loop for each.
#pragma once

#include <omnisparse/backend/cpu/reference.hpp>
#include <omnisparse/detail/far_blocks.hpp>

#include <algorithm>

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

/// The logarithm of the mass that the blocks of a pyramid stand for, seen by q [dim]. Only keys for
/// which `counts(j)` holds enter the moments. See `far_estimate`.
template <class T, class Counts>
double reference_far_lse(T const* q, tensor_view<T const, host> const& k, int b, int g,
                         key_range window, int sinks, int kv_tokens, far_estimate const& estimate,
                         mask limit, Counts counts, softmax_scale scale = {}) {
  int const dim = k.extent(3);
  std::vector<double> terms;
  detail::for_each_far_block(
      window, sinks, kv_tokens, estimate, limit, [&](int level, int index, key_range clip) {
        int const span = estimate.block << 2 * level;
        std::vector<int> keys;
        for (int j = index * span; j < std::min(kv_tokens, (index + 1) * span); ++j) {
          if (j >= sinks && counts(j)) keys.push_back(j);
        }
        double const n = static_cast<double>(keys.size());
        double const far = std::min<double>(n, clip.size());
        if (!(far > 0)) return;
        double logit = 0, spread = 0, q_squared = 0;
        std::vector<double> mean(static_cast<std::size_t>(dim), 0.0);
        for (int d = 0; d < dim; ++d) {
          double& mu = mean[static_cast<std::size_t>(d)];
          double const x = static_cast<double>(q[d]);
          double variance = 0;
          for (int const j : keys) mu += static_cast<double>(k(b, g, j, d)) / n;
          for (int const j : keys) {
            double const off = static_cast<double>(k(b, g, j, d)) - mu;
            variance += off * off / n;
          }
          logit += scale.logit(x * mu, dim);
          spread += scale.logit(scale.logit(x * x * variance / 2.0, dim), dim);
          q_squared += x * x;
        }
        double radius = 0;
        for (int const j : keys) {
          double squared = 0;
          for (int d = 0; d < dim; ++d) {
            double const off =
                static_cast<double>(k(b, g, j, d)) - mean[static_cast<std::size_t>(d)];
            squared += off * off;
          }
          radius = std::max(radius, std::sqrt(squared));
        }
        double const extra = estimate.by == far_estimate::kind::upper_bound
                                 ? scale.logit(std::sqrt(q_squared) * radius, dim)
                                 : static_cast<double>(estimate.variance_weight) * spread;
        terms.push_back(logit + extra + std::log(far));
      });
  return reference_lse(terms);
}

/// The row's logits on the mean of the first keys and the mean of the others before `end`.
template <class T>
observation::sink_and_mean reference_sink_and_mean(T const* q, tensor_view<T const, host> const& k,
                                                   int b, int g, int first, int end,
                                                   softmax_scale scale = {}) {
  int const dim = k.extent(3);
  double logit[2] = {0, 0};
  int const bounds[3] = {0, std::min(first, end), end};
  for (int part = 0; part < 2; ++part) {
    int const n = bounds[part + 1] - bounds[part];
    for (int j = bounds[part]; j < bounds[part + 1]; ++j) {
      for (int d = 0; d < dim; ++d) {
        logit[part] +=
            scale.logit(static_cast<double>(q[d]) * static_cast<double>(k(b, g, j, d)) / n, dim);
      }
    }
  }
  bool const pooled = bounds[2] > bounds[1];
  double const share = pooled ? contrast_share(logit[0], logit[1]) : 0.0;
  return {static_cast<float>(logit[0]), static_cast<float>(logit[1]), static_cast<float>(share)};
}

/// 1 / (1 + exp(b - a)): the share of a in two log-masses; 0 where a is empty, `unknown` where they
/// give none.
inline double reference_share(double a, double b, double unknown) {
  if (is_empty(a)) return 0;
  double const share = 1.0 / (1.0 + std::exp(b - a));
  return is_nan(share) ? unknown : share;
}

/// What the probe rows of one (batch, chunk, KV head) tell of its keys.
struct reference_profile {
  std::vector<observation::probe_mass> seen;  ///< [kv_tokens]
  std::vector<double> mass;                   ///< [kv_tokens]
  double total = 0;                           ///< probe rows that see anything: their whole mass
};

template <class T, class Policies>
reference_profile reference_observe(attention_call<T, host> const& call, Policies const& p, int b,
                                    int g, sequence_extent extent, int first, int rows) {
  attention_shape const& shape = call.shape;
  reference_profile profile;
  profile.seen.resize(static_cast<std::size_t>(shape.kv_tokens));
  profile.mass.resize(static_cast<std::size_t>(shape.kv_tokens), 0.0);
  for (int i = first; i < first + rows; ++i) {
    if (!p.scorer.probes(i - first, rows)) continue;
    int const position = extent.position(i);
    int const end = near_field::visible(position, extent.kv_tokens, p.limit).end;
    if (end == 0) continue;
    for (int h = g * shape.group(); h < (g + 1) * shape.group(); ++h) {
      std::vector<exact_t<T>> logits;
      for (int j = 0; j < end; ++j) {
        logits.push_back(
            reference_logit(call.q.at(b, h, i), call.k.at(b, g, j), shape.dim, call.scale));
      }
      auto const lse = reference_lse(logits);
      profile.total += 1;
      bool const tells = is_finite(kind_of(lse));
      for (int j = 0; j < end; ++j) {
        if (p.near.contains(j, position, extent.kv_tokens, p.limit)) continue;
        auto const at = static_cast<std::size_t>(j);
        double const share = tells ? static_cast<double>(exact_weight(logits[at], lse)) : 0.0;
        profile.mass[at] += share;
        profile.seen[at].peak = std::max(profile.seen[at].peak, static_cast<float>(share));
        profile.seen[at].rows += 1;
      }
    }
  }
  for (std::size_t j = 0; j < profile.mass.size(); ++j) {
    profile.seen[j].mass = static_cast<float>(profile.mass[j]);
  }
  return profile;
}

/// How concentrated the mass is: larger is less flat. All mass zero counts as fully concentrated.
inline double reference_concentration(std::vector<double> masses, flatness_by by) {
  double sum = 0;
  for (double const m : masses) sum += m;
  if (!(sum > 0)) return empty_lse<double>() * -1;
  double result = 0;
  std::sort(masses.begin(), masses.end(), std::greater<>{});
  std::size_t const top = (masses.size() + 19) / 20;
  for (std::size_t n = 0; n < masses.size(); ++n) {
    double const share = masses[n] / sum;
    if (by == flatness_by::simpson) result += share * share;
    if (by == flatness_by::top_share && n < top) result += share;
    if (by == flatness_by::entropy && share > 0) result += share * std::log(share);
  }
  return result;
}

/// Writes the lists of one (batch, chunk) for all KV heads.
template <class T, class Policies>
void reference_lists(attention_call<T, host> const& call, Policies const& p,
                     plan_view<host> const& plan, int b, int c, sequence_extent extent) {
  attention_shape const& shape = call.shape;
  using scorer_sees = observed<decltype(p.scorer)>;
  using budget_sees = observed<decltype(p.budget)>;
  constexpr bool probing = std::same_as<scorer_sees, observation::probe_mass> ||
                           !std::same_as<budget_sees, observation::nothing>;
  int const first = c * plan.chunk_rows;
  int const rows = std::min(plan.chunk_rows, extent.q_tokens - first);
  auto const is_text = [&](int j) {
    return !call.in.segments.is_null() && call.in.segments(b, j) == segment::text;
  };
  far_candidates const candidates =
      rows <= 0 ? far_candidates{}
                : candidates_of(p.near, extent.position(first), extent.position(first + rows - 1),
                                extent.kv_tokens, p.limit);
  std::vector<int> text, visual;
  for (int n = 0; n < candidates.size(); ++n) {
    (is_text(candidates.key(n)) ? text : visual).push_back(candidates.key(n));
  }
  kv_extent const kv{static_cast<int>(visual.size())};

  auto const heads = static_cast<std::size_t>(shape.kv_heads);
  std::vector<reference_profile> profiles(heads);
  std::vector<std::vector<int>> ranked(heads, visual);  // best first
  std::vector<double> held(heads, 0.0);                 // mass of near field and text
  std::vector<int> reach(heads, 0);
  int flattest = 0;
  double least = empty_lse<double>() * -1;
  for (int g = 0; g < shape.kv_heads; ++g) {
    auto const at = static_cast<std::size_t>(g);
    reference_profile& profile = profiles[at];
    profile.seen.resize(static_cast<std::size_t>(shape.kv_tokens));
    profile.mass.resize(static_cast<std::size_t>(shape.kv_tokens), 0.0);
    if constexpr (probing) profile = reference_observe(call, p, b, g, extent, first, rows);
    auto const score = [&](int j) {
      token const t{j, segment::visual, false};
      float s = 0;
      if constexpr (std::same_as<scorer_sees, observation::probe_mass>) {
        s = p.scorer.score(profile.seen[static_cast<std::size_t>(j)], t);
      } else {
        s = p.scorer.score({}, t);
      }
      return is_nan(s) ? empty_lse<float>() : s;  // NaN ranks last
    };
    std::stable_sort(ranked[at].begin(), ranked[at].end(),
                     [&](int x, int y) { return score(x) > score(y); });
    held[at] = profile.total;
    for (int const j : visual) held[at] -= profile.mass[static_cast<std::size_t>(j)];
    double mass = held[at];
    double const wanted = static_cast<double>(detail::recall_of(p.budget)) * profile.total;
    while (reach[at] < kv.tokens && mass < wanted) {
      mass +=
          profile.mass[static_cast<std::size_t>(ranked[at][static_cast<std::size_t>(reach[at])])];
      ++reach[at];
    }
    std::vector<double> masses;
    for (int const j : visual) masses.push_back(profile.mass[static_cast<std::size_t>(j)]);
    double const stat = reference_concentration(masses, detail::flatness_of(p.budget));
    if (stat < least) {
      least = stat;
      flattest = g;
    }
  }
  for (int g = 0; g < shape.kv_heads; ++g) {
    auto const at = static_cast<std::size_t>(g);
    int wanted = 0;
    if constexpr (std::same_as<budget_sees, observation::own_reach>) {
      wanted = p.budget.tokens({reach[at]}, kv);
    } else if constexpr (std::same_as<budget_sees, observation::all_reaches>) {
      wanted = p.budget.tokens({reach.data(), shape.kv_heads, flattest}, kv);
    } else {
      wanted = p.budget.tokens({}, kv);
    }
    int const room = plan.capacity - static_cast<int>(text.size());
    int const count = std::min(clamped(wanted, 0, kv.tokens), std::max(0, room));
    std::vector<int> kept(ranked[at].begin(), ranked[at].begin() + count);
    double mass = held[at];
    for (int const j : kept) mass += profiles[at].mass[static_cast<std::size_t>(j)];
    kept.insert(kept.end(), text.begin(), text.end());
    std::sort(kept.begin(), kept.end());
    std::int64_t const list = plan.list(b, c, g);
    plan.kept_counts[list] = static_cast<int>(kept.size());
    std::copy(kept.begin(), kept.end(), plan.kept_at(b, c, g));
    double const total = profiles[at].total;
    plan.recalls[list] = !probing ? -1.f : total > 0 ? static_cast<float>(mass / total) : 1.f;
  }
}

/// The class of row i of head (b, h), given the list of its chunk.
template <class T, class Policies>
row_class reference_class(attention_call<T, host> const& call, Policies const& p, int b, int h,
                          int i, sequence_extent extent, std::vector<bool> const& listed) {
  using selector_sees = observed<decltype(p.selector)>;
  using rescue_sees = observed<decltype(p.rescue)>;
  int const g = h / call.shape.group(), dim = call.shape.dim;
  int const position = extent.position(i);
  int const end = near_field::visible(position, extent.kv_tokens, p.limit).end;
  key_range const window = p.near.window_of(position, extent.kv_tokens, p.limit);
  T const* const q = call.q.at(b, h, i);
  query_row const row{position, h};
  auto const lse_seen = [&](row_class kind) {
    std::vector<exact_t<T>> logits;
    for (int j = 0; j < end; ++j) {
      if (reference_sees(kind, p.near, p.limit, position, extent.kv_tokens, listed, j)) {
        logits.push_back(reference_logit(q, call.k.at(b, g, j), dim, call.scale));
      }
    }
    return static_cast<double>(reference_lse(logits));
  };
  bool const text = !call.in.segments.is_null() && position >= 0 &&
                    call.in.segments(b, position) == segment::text;
  bool active = false;
  if constexpr (std::same_as<selector_sees, observation::sink_and_mean>) {
    int const pool = detail::range_of(p.selector) == pool_range::past
                         ? clamped(position + 1, 0, extent.kv_tokens)
                         : extent.kv_tokens;
    active = p.selector.keeps(
        reference_sink_and_mean(q, call.k, b, g, detail::first_of(p.selector), pool, call.scale),
        row);
  } else if constexpr (std::same_as<selector_sees, observation::near_and_far>) {
    double const near = lse_seen(row_class::lazy);
    double const far = reference_far_lse(
        q, call.k, b, g, window, p.near.sinks, extent.kv_tokens, detail::estimate_of(p.selector),
        p.limit, [](int) { return true; }, call.scale);
    active = p.selector.keeps({static_cast<float>(near), static_cast<float>(far),
                               static_cast<float>(reference_share(far, near, 1))},
                              row);
  } else {
    active = p.selector.keeps({}, row);
  }
  if (!active && !text) return row_class::lazy;
  bool rescued = false;
  if constexpr (std::same_as<rescue_sees, observation::coverage>) {
    double const left = reference_far_lse(
        q, call.k, b, g, window, p.near.sinks, extent.kv_tokens, detail::estimate_of(p.rescue),
        p.limit, [&](int j) { return !listed[static_cast<std::size_t>(j)]; }, call.scale);
    double const seen = lse_seen(row_class::active);
    double const share = is_empty(left) ? 1.0 : reference_share(seen, left, 0);
    rescued = p.rescue.rescues({static_cast<float>(share)}, row);
  } else {
    rescued = p.rescue.rescues({}, row);
  }
  return rescued ? row_class::rescued : row_class::active;
}

/// Plans by the definition. Rows that do not exist are lazy, lists of chunks without rows empty.
template <class T, class Policies>
void reference_plan(attention_call<T, host> const& call, Policies const& p,
                    plan_view<host> const& plan) {
  attention_shape const& shape = call.shape;
  for (int b = 0; b < shape.batch; ++b) {
    sequence_extent const extent = extent_of(shape, call.in, b);
    for (int c = 0; c < plan.chunks(); ++c) {
      reference_lists(call, p, plan, b, c, extent);
      int const end = std::min(shape.q_tokens, (c + 1) * plan.chunk_rows);
      for (int h = 0; h < shape.q_heads; ++h) {
        auto const listed = reference_list(plan, b, c, h / shape.group());
        for (int i = c * plan.chunk_rows; i < end; ++i) {
          plan.rows_at(b, h)[i] = i < extent.q_tokens
                                      ? reference_class(call, p, b, h, i, extent, listed)
                                      : row_class::lazy;
        }
      }
    }
  }
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
