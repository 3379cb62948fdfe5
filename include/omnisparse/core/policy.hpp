/// @file
/// The roles: which question a policy answers, and the sentence a wrong policy fails with.
///
/// A policy is a trivially copyable struct that says what it `observes` and answers one scalar
/// question by an OMNISPARSE_HD constexpr noexcept member. The member's name tells its role. It may
/// also have 'constexpr char const* refuses() const noexcept', host code: what is wrong with its
/// options as a sentence, or null. Every call asks that first and refuses with the sentence.
#pragma once

#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

#include <concepts>
#include <type_traits>

namespace omnisparse {

/// What policy P looks at.
template <class P>
using observed = typename P::observes;

template <class P>
concept policy = std::is_trivially_copyable_v<P> && requires { typename P::observes; };

/// Does this row look far?
template <class P>
concept query_selector = policy<P> && requires(P const p, observed<P> seen, query_row row) {
  { p.keeps(seen, row) } noexcept -> std::same_as<bool>;
};

/// Did the list miss too much for this row? Asked of active rows only: a lazy row has no list.
template <class P>
concept row_rescue = policy<P> && requires(P const p, observed<P> seen, query_row row) {
  { p.rescues(seen, row) } noexcept -> std::same_as<bool>;
};

/// Is row `i` of a chunk of `n` rows a probe, and what is this key worth?
template <class P>
concept token_scorer = policy<P> && requires(P const p, observed<P> seen, token t, int i, int n) {
  { p.probes(i, n) } noexcept -> std::same_as<bool>;
  { p.score(seen, t) } noexcept -> std::same_as<float>;
};

/// How many tokens does this head keep? The backend clamps the answer to [0, kv.tokens].
template <class P>
concept kv_budget = policy<P> && requires(P const p, observed<P> seen, kv_extent kv) {
  { p.tokens(seen, kv) } noexcept -> std::same_as<int>;
};

/// Does this token stay in the cache?
template <class P>
concept stores_tokens = policy<P> && requires(P const p, token t) {
  { p.stores(t) } noexcept -> std::same_as<bool>;
};

/// Does this head read the stored visual tokens at this step?
template <class P>
concept fetches_tokens = policy<P> && requires(P const p, observed<P> seen) {
  { p.fetches(seen) } noexcept -> std::same_as<bool>;
};

/// A slimmer answers one of the two questions or both; the one left out counts as true.
template <class P>
concept cache_slimmer = stores_tokens<P> || fetches_tokens<P>;

namespace detail {

// The member's name tells the role, before anything is known of its signature.
template <class P>
concept names_keeps = requires { &P::keeps; };
template <class P>
concept names_rescues = requires { &P::rescues; };
template <class P>
concept names_score = requires { &P::score; } || requires { &P::probes; };
template <class P>
concept names_tokens = requires { &P::tokens; };
template <class P>
concept names_stores = requires { &P::stores; };
template <class P>
concept names_fetches = requires { &P::fetches; };
template <class P>
concept names_a_role = names_keeps<P> || names_rescues<P> || names_score<P> || names_tokens<P> ||
                       names_stores<P> || names_fetches<P>;

template <class P>
concept names_refuses = requires { &P::refuses; };
template <class P>
concept tells_refusal = requires(P const p) {
  { p.refuses() } noexcept -> std::same_as<char const*>;
};

// Stage 1: a policy at all? Each check returns true so that only the first failure is printed.
template <class P>
consteval bool is_policy() {
  static_assert(std::is_trivially_copyable_v<P>,
                "omnisparse: a policy is copied into kernels: keep it trivially copyable, numbers "
                "and no containers");
  if constexpr (std::is_trivially_copyable_v<P>) {
    static_assert(
        requires { typename P::observes; },
        "omnisparse: say what the policy looks at, for example 'using observes = "
        "observation::nothing;'");
    static_assert(!names_refuses<P> || tells_refusal<P>,
                  "omnisparse: options are judged by 'char const* refuses() const noexcept'");
  }
  return policy<P>;
}

// Stage 2: fit for its role?
template <class P>
consteval bool is_selector() {
  if constexpr (is_policy<P>()) {
    constexpr bool observes = observation::of_row<observed<P>>;
    static_assert(observes,
                  "omnisparse: a selector observes nothing, sink_and_mean or near_and_far");
    static_assert(!observes || query_selector<P>,
                  "omnisparse: a selector answers 'bool keeps(observes, query_row) const "
                  "noexcept'");
  }
  return true;
}

template <class P>
consteval bool is_rescue() {
  if constexpr (is_policy<P>()) {
    constexpr bool observes = observation::of_list<observed<P>>;
    static_assert(observes, "omnisparse: a rescue observes nothing or coverage");
    static_assert(!observes || row_rescue<P>,
                  "omnisparse: a rescue answers 'bool rescues(observes, query_row) const "
                  "noexcept'");
  }
  return true;
}

template <class P>
consteval bool is_scorer() {
  if constexpr (is_policy<P>()) {
    constexpr bool observes = observation::of_token<observed<P>>;
    static_assert(observes, "omnisparse: a scorer observes nothing or probe_mass");
    static_assert(!observes || token_scorer<P>,
                  "omnisparse: a scorer answers 'bool probes(int row, int rows) const noexcept' "
                  "and 'float score(observes, token) const noexcept'");
  }
  return true;
}

template <class P>
consteval bool is_budget() {
  if constexpr (is_policy<P>()) {
    constexpr bool observes = observation::of_profile<observed<P>>;
    constexpr bool has_recall = std::same_as<observed<P>, observation::nothing> || requires(P p) {
      { p.recall } -> std::convertible_to<float>;
    };
    static_assert(observes, "omnisparse: a budget observes nothing, own_reach or all_reaches");
    static_assert(!observes || has_recall,
                  "omnisparse: a reach is measured at a recall: add 'float recall = 0.95f;'");
    static_assert(!observes || !has_recall || kv_budget<P>,
                  "omnisparse: a budget answers 'int tokens(observes, kv_extent) const noexcept'");
  }
  return true;
}

template <class P>
consteval bool is_storer() {
  if constexpr (is_policy<P>()) {
    static_assert(stores_tokens<P>,
                  "omnisparse: a slimmer answers 'bool stores(token) const noexcept'");
  }
  return true;
}

template <class P>
consteval bool is_fetcher() {
  if constexpr (is_policy<P>()) {
    constexpr bool observes = observation::of_step<observed<P>>;
    static_assert(observes, "omnisparse: a fetching slimmer observes nothing or sink_and_mean");
    static_assert(!observes || fetches_tokens<P>,
                  "omnisparse: a slimmer answers 'bool fetches(observes) const noexcept'");
  }
  return true;
}

// Options that tell how an observation is measured; a policy that has no such member gets the
// default.
template <class P>
OMNISPARSE_HD constexpr far_estimate estimate_of(P const& p) noexcept {
  if constexpr (requires { p.estimate; }) return p.estimate;
  else return {};
}

template <class P>
OMNISPARSE_HD constexpr pool_range range_of(P const& p) noexcept {
  if constexpr (requires { p.range; }) return p.range;
  else return pool_range::past;
}

template <class P>
OMNISPARSE_HD constexpr int first_of(P const& p) noexcept {
  if constexpr (requires { p.first; }) return p.first;
  else return 1;
}

template <class P>
OMNISPARSE_HD constexpr flatness_by flatness_of(P const& p) noexcept {
  if constexpr (requires { p.flatness; }) return p.flatness;
  else return flatness_by::simpson;
}

template <class P>
OMNISPARSE_HD constexpr float recall_of(P const& p) noexcept {
  if constexpr (requires { p.recall; }) return p.recall;
  else return 1.f;
}

// What a set of policies needs to look at, known at compile time: nothing else is computed.
template <class Policies>
struct wants {
  using selector_sees = observed<decltype(Policies::selector)>;
  using rescue_sees = observed<decltype(Policies::rescue)>;
  static constexpr bool contrast = std::same_as<selector_sees, observation::sink_and_mean>;
  static constexpr bool far = std::same_as<selector_sees, observation::near_and_far>;
  static constexpr bool coverage = std::same_as<rescue_sees, observation::coverage>;
  static constexpr bool probes =
      std::same_as<observed<decltype(Policies::scorer)>, observation::probe_mass> ||
      !std::same_as<observed<decltype(Policies::budget)>, observation::nothing>;
};

}  // namespace detail
}  // namespace omnisparse
