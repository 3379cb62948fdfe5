/// @file
/// The one include: attention as a functor made of policies, on a backend chosen at compile time.
#pragma once

#include <omnisparse/budget/dense.hpp>
#include <omnisparse/budget/fixed.hpp>
#include <omnisparse/budget/flattest_head.hpp>
#include <omnisparse/budget/guaranteed.hpp>
#include <omnisparse/budget/per_head.hpp>
#include <omnisparse/budget/ratio.hpp>
#include <omnisparse/cache/check_decode.hpp>
#include <omnisparse/cache/kv_cache.hpp>
#include <omnisparse/cache/slim.hpp>
#include <omnisparse/core/backend.hpp>
#include <omnisparse/core/call.hpp>
#include <omnisparse/core/crossover.hpp>
#include <omnisparse/core/decode_call.hpp>
#include <omnisparse/core/merge.hpp>
#include <omnisparse/core/softmax_scale.hpp>
#include <omnisparse/core/version.hpp>
#include <omnisparse/core/workspace.hpp>
#include <omnisparse/plan/check.hpp>
#include <omnisparse/plan/dense.hpp>
#include <omnisparse/plan/plan.hpp>
#include <omnisparse/plan/serialize.hpp>
#include <omnisparse/plan/summary.hpp>
#include <omnisparse/rescue/coverage.hpp>
#include <omnisparse/rescue/none.hpp>
#include <omnisparse/scorer/column_mass.hpp>
#include <omnisparse/selector/all.hpp>
#include <omnisparse/selector/far_mass.hpp>
#include <omnisparse/selector/none.hpp>
#include <omnisparse/selector/sink_contrast.hpp>
#include <omnisparse/slim/head_fetch.hpp>
#include <omnisparse/slim/kept_tokens.hpp>
#include <omnisparse/slim/none.hpp>

#include <concepts>
#include <cstddef>

namespace omnisparse {

/// Attention composed of policies on `Backend`. `attention{backend::cpu{}}` alone is dense causal
/// attention; each `.with(...)` returns a new functor with one thing exchanged. A functor is a
/// small value without state: copy it, share it between threads, one workspace for each.
///
/// A call never allocates and refuses bad input by a `status` before it writes anything. The
/// stages: `plan` decides, `run` attends by any valid plan, `operator()` does both.
template <class Backend, class Selector = selector::all, class Rescue = rescue::none,
          class Scorer = scorer::column_mass, class Budget = budget::dense,
          class Storer = slim::none, class Fetcher = slim::none>
class attention {
  static_assert(detail::is_selector<Selector>() && detail::is_rescue<Rescue>() &&
                detail::is_scorer<Scorer>() && detail::is_budget<Budget>() &&
                detail::is_storer<Storer>() && detail::is_fetcher<Fetcher>());

 public:
  using space = typename Backend::space;
  using stream = typename Backend::stream;
  using policies_type = policy_set<Selector, Rescue, Scorer, Budget, Storer, Fetcher>;

  constexpr explicit attention(Backend backend = {}, policies_type policies = {}) noexcept
      : backend_(backend), policies_(policies) {}

  /// The same attention with policy `p` in the seat of each question that it answers.
  template <class P>
  constexpr auto with(P p) const noexcept {
    static_assert(detail::names_a_role<P>,
                  "omnisparse: a policy has 'keeps', 'rescues', 'score', 'tokens', 'stores' or "
                  "'fetches'");
    if constexpr (!detail::names_a_role<P>) {
      return *this;
    } else {
      auto const seat = [&p](auto takes, auto const& old) {
        if constexpr (decltype(takes)::value) return p;
        else return old;
      };
      auto const s = seat(std::bool_constant<detail::names_keeps<P>>{}, policies_.selector);
      auto const r = seat(std::bool_constant<detail::names_rescues<P>>{}, policies_.rescue);
      auto const c = seat(std::bool_constant<detail::names_score<P>>{}, policies_.scorer);
      auto const b = seat(std::bool_constant<detail::names_tokens<P>>{}, policies_.budget);
      auto const t = seat(std::bool_constant<detail::names_stores<P>>{}, policies_.storer);
      auto const f = seat(std::bool_constant<detail::names_fetches<P>>{}, policies_.fetcher);
      using changed =
          attention<Backend, std::remove_const_t<decltype(s)>, std::remove_const_t<decltype(r)>,
                    std::remove_const_t<decltype(c)>, std::remove_const_t<decltype(b)>,
                    std::remove_const_t<decltype(t)>, std::remove_const_t<decltype(f)>>;
      return changed{backend_,
                     {s, r, c, b, t, f, policies_.near, policies_.limit, policies_.rows,
                      policies_.scale, policies_.below}};
    }
  }
  /// The same attention with another near field.
  constexpr attention with(near_field near) const noexcept {
    return with_option(&policies_type::near, near);
  }
  /// The same attention with another mask.
  constexpr attention with(mask limit) const noexcept {
    return with_option(&policies_type::limit, limit);
  }
  /// The same attention with another number of rows per kept list.
  constexpr attention with(chunk rows) const noexcept {
    return with_option(&policies_type::rows, rows);
  }
  /// The same attention with another factor between q . k and a logit.
  constexpr attention with(softmax_scale scale) const noexcept {
    return with_option(&policies_type::scale, scale);
  }
  /// The same attention that does otherwise with calls too short for planning to pay.
  constexpr attention with(crossover below) const noexcept {
    return with_option(&policies_type::below, below);
  }
  /// The same attention on at most so many threads.
  constexpr attention with(threads most) const noexcept {
    static_assert(
        requires(Backend b) { b.threads = 1; },
        "omnisparse: this backend has no threads to count: leave 'threads' to "
        "backend::cpu");
    attention changed = *this;
    if constexpr (requires(Backend b) { b.threads = 1; }) changed.backend_.threads = most.count;
    return changed;
  }

  constexpr policies_type const& policies() const noexcept { return policies_; }

  /// Would a call of this shape and dtype run? ok, or the sentence that says why not: an extent, an
  /// option of any policy, or what the backend cannot do.
  template <element T = float>
  status can_run(attention_shape const& shape) const noexcept {
    if (status const bad = detail::check_shape(shape); !bad.ok()) return bad;
    if (status const bad = check_functor(); !bad.ok()) return bad;
    return engine<Backend>::template can_run<T>(backend_, policies_, shape);
  }

  /// Would a call that plans and attends run dense attention instead, because planning cannot pay
  /// at this size? True for a functor that keeps everything; else only under
  /// `crossover::measured`. False for what `can_run` refuses.
  template <element T = float>
  bool runs_dense(attention_shape const& shape) const noexcept {
    if constexpr (detail::is_dense<policies_type>) {
      return can_run<T>(shape).ok();
    } else {
      if (policies_.below == crossover::never || !can_run<T>(shape).ok()) return false;
      return engine<Backend>::template crossover_of<T>(backend_, policies_, shape)
          .prefers_dense(shape, policies_.limit);
    }
  }

  /// Bytes of workspace that any call of this shape and dtype needs, at any lengths; 0 where
  /// `can_run` refuses the shape, or on a backend that needs none. `run` by a
  /// plan of another chunk than this functor's needs no more, unless that is shorter than 64 rows.
  template <element T = float>
  std::size_t workspace_bytes(attention_shape const& shape) const noexcept {
    if (!can_run<T>(shape).ok()) return 0;
    std::size_t const bytes =
        engine<Backend>::template workspace_bytes<T>(backend_, policies_, shape);
    if (!runs_dense<T>(shape)) return bytes;
    return larger(bytes, engine<Backend>::template workspace_bytes<T>(
                             backend_, detail::dense_of(policies_), shape));
  }

  /// Memory for the plan of a call of this shape. Allocates. False where the shape or an option
  /// makes no sense.
  attention_plan<space> make_plan(attention_shape const& shape, int capacity = -1) const noexcept {
    if (!check_functor().ok()) return {};
    return attention_plan<space>(shape, policies_.rows, capacity);
  }

  /// Plans and attends, or runs dense where `runs_dense` says so: q [B, Hq, Nq, D], k and v
  /// [B, Hkv, Nkv, D] to out [B, Hq, Nq, D] and, where given, lse [B, Hq, Nq] (nats, natural). Rows
  /// that see nothing get 0 and -inf.
  ///
  /// A NaN shows in every row that sees it: of q or k in all of out and in lse, of v in its column;
  /// finite input gives finite output wherever the exact result is finite, rows that need more
  /// range slowly; on a GPU for scores below about 2^29 and float values below 0.999 of the
  /// largest, and a NaN or infinity in v may there reach its tile's 64 rows. What lies beyond a
  /// length is never looked at.
  ///
  /// Inputs may share memory and repeat themselves by strides of 0. No element of out, lse or the
  /// workspace may be one of an input or of another of the three, and no two of out, or of lse, may
  /// coincide: so out may stand in one buffer with q, k and v, as [B, N, 4, H, D], but not in their
  /// place.
  template <class Q, class K, class V, class O, class S>
  status operator()(tensor_view<Q, S> const& q, tensor_view<K, S> const& k,
                    tensor_view<V, S> const& v, tensor_view<O, S> const& out,
                    lse_view<O, S> const& lse, workspace_view<space> ws,
                    inputs<space> const& in = {}, stream on = {}) const noexcept {
    auto const call = make_call(q, k, v, out, lse, in);
    if (status const bad = check(call, writing); !bad.ok()) return bad;
    detail::memory_of_call memory;
    if (status const bad = check_outputs(memory, call, ws); !bad.ok()) return bad;
    if constexpr (!detail::is_dense<policies_type>) {
      if (runs_dense<O>(call.shape)) {
        return engine<Backend>::attend(backend_, detail::dense_of(policies_), call, ws, on);
      }
    }
    return engine<Backend>::attend(backend_, policies_, call, ws, on);
  }
  /// The same without lse.
  template <class Q, class K, class V, class O, class S>
  status operator()(tensor_view<Q, S> const& q, tensor_view<K, S> const& k,
                    tensor_view<V, S> const& v, tensor_view<O, S> const& out,
                    workspace_view<space> ws, inputs<space> const& in = {},
                    stream on = {}) const noexcept {
    return (*this)(q, k, v, out, lse_view<O, S>{}, ws, in, on);
  }

  /// Decides: writes row classes and kept lists into `plan`, whose memory `make_plan` gives. A
  /// budget is clamped to the plan's capacity. The plan's memory is nobody else's: neither an
  /// input's nor the workspace's.
  template <class Q, class K, class S>
  status plan(tensor_view<Q, S> const& q, tensor_view<K, S> const& k,
              std::type_identity_t<plan_view<S>> const& plan, workspace_view<space> ws,
              inputs<space> const& in = {}, stream on = {}) const noexcept {
    using T = std::remove_const_t<Q>;
    auto const call = make_call(q, k, tensor_view<T const, S>{}, tensor_view<T, S>{},
                                lse_view<T, S>{}, in, planning);
    if (status const bad = check(call, planning); !bad.ok()) return bad;
    status bad = detail::check_plan_target(plan, call.shape, policies_.rows, in);
    if (!bad.ok()) return bad;
    detail::memory_of_call memory;
    detail::add_reads(memory, call);
    detail::each_part(plan,
                      [&](void const* part, std::size_t bytes) { memory.writes(part, bytes); });
    memory.works_in(ws.data, ws.bytes);
    bad = memory.check(
        "omnisparse: a part of the plan to be written shares memory with another, or with q, k, "
        "lengths or segments: use attention_plan, which owns its memory");
    if (!bad.ok()) return bad;
    return engine<Backend>::plan(backend_, policies_, call, plan, ws, on);
  }

  /// Attends by a plan, wherever it comes from and whatever its chunk; only near field and mask are
  /// read of the policies.
  template <class Q, class K, class V, class O, class S>
  status run(tensor_view<Q, S> const& q, tensor_view<K, S> const& k, tensor_view<V, S> const& v,
             std::type_identity_t<plan_view<S>> const& plan, tensor_view<O, S> const& out,
             lse_view<O, S> const& lse, workspace_view<space> ws, inputs<space> const& in = {},
             stream on = {}) const noexcept {
    auto const call = make_call(q, k, v, out, lse, in);
    if (status const bad = check(call, writing); !bad.ok()) return bad;
    if (status const bad = detail::check_plan_frame(plan, call.shape); !bad.ok()) return bad;
    detail::memory_of_call memory;
    detail::each_part(plan,
                      [&](void const* part, std::size_t bytes) { memory.reads(part, bytes); });
    if (status const bad = check_outputs(memory, call, ws); !bad.ok()) return bad;
    return engine<Backend>::run(backend_, policies_, call, plan, ws, on);
  }
  /// The same without lse.
  template <class Q, class K, class V, class O, class S>
  status run(tensor_view<Q, S> const& q, tensor_view<K, S> const& k, tensor_view<V, S> const& v,
             std::type_identity_t<plan_view<S>> const& plan, tensor_view<O, S> const& out,
             workspace_view<space> ws, inputs<space> const& in = {},
             stream on = {}) const noexcept {
    return run(q, k, v, plan, out, lse_view<O, S>{}, ws, in, on);
  }

  /// Builds a cache's sequence from a plan: appends k and v [B, Hkv, Nkv, D] of batch index `b`,
  /// but only what the storing policy lets stay. The full cache never exists.
  template <class K, class T>
  status slim(tensor_view<K, space> const& k, tensor_view<K, space> const& v,
              std::type_identity_t<plan_view<space>> const& plan, kv_cache<Backend, T>& cache,
              int sequence, inputs<space> const& in = {}, int b = 0) const noexcept {
    if (status const bad = check_functor(); !bad.ok()) return bad;
    if (status const bad = detail::check_slim(plan, in, b, cache); !bad.ok()) return bad;
    attention_shape const& s = plan.shape;
    if (!detail::has_extents(k, s.batch, s.kv_heads, s.kv_tokens, s.dim) ||
        !detail::has_extents(v, s.batch, s.kv_heads, s.kv_tokens, s.dim)) {
      return detail::shape_refusal(
          "omnisparse: k and v must be [B, Hkv, Nkv, D] of the plan's shape");
    }
    if (!detail::is_readable(k) || !detail::is_readable(v)) {
      return {status_code::invalid_view,
              "omnisparse: k and v need memory and a contiguous last dimension (stride 1): copy "
              "into such a layout"};
    }
    if (!detail::strides_fit(k) || !detail::strides_fit(v)) return detail::stride_refusal();
    detail::storing const keeps(policies_.storer, policies_.near, policies_.limit, plan, in, b);
    auto const of = [&](tensor_view<K, space> const& x) {
      return tensor_view<K, space, 3>(x.at(b), {s.kv_heads, keeps.tokens(), s.dim},
                                      {x.stride(1), x.stride(2), x.stride(3)});
    };
    return cache.append_if(sequence, of(k), of(v), [&](int j) { return keeps.kind(j); }, keeps);
  }
  /// Trims a sequence that holds the plan's tokens already: what the storing policy does not let
  /// stay is dropped and whole pages return to the pool. Tokens beyond the plan stay.
  template <class T>
  status slim(std::type_identity_t<plan_view<space>> const& plan, kv_cache<Backend, T>& cache,
              int sequence, inputs<space> const& in = {}, int b = 0) const noexcept {
    if (status const bad = check_functor(); !bad.ok()) return bad;
    if (status const bad = detail::check_slim(plan, in, b, cache); !bad.ok()) return bad;
    detail::storing const keeps(policies_.storer, policies_.near, policies_.limit, plan, in, b);
    return cache.keep_if(sequence,
                         [&](int g, int j) { return j >= keeps.tokens() || keeps(g, j); });
  }

  /// Bytes of workspace that `decode` needs for `batch` rows of `q_heads` heads on this cache; 0
  /// where it would refuse them.
  template <class T>
  std::size_t decode_workspace_bytes(kv_cache<Backend, T> const& cache, int batch,
                                     int q_heads) const noexcept {
    if (!check_functor().ok() || !detail::check_decode_shape(cache.ref(), batch, q_heads).ok()) {
      return 0;
    }
    return engine<Backend>::decode_workspace_bytes(backend_, cache.ref(), batch, q_heads);
  }

  /// One step: row b of q [B, Hq, 1, D] attends to what sequence b (or sequences(b)) stores: text
  /// always, visual tokens when near or when the fetching policy says so. The row stands at the
  /// last appended position, so append its own key and value first. No element of out, lse or the
  /// workspace may be one of q, the sequences, the cache or another of the three.
  template <class Q, class T, class O>
  status decode(tensor_view<Q, space> const& q, kv_cache<Backend, T> const& cache,
                tensor_view<O, space> const& out, lse_view<T, space> const& lse,
                workspace_view<space> ws,
                std::type_identity_t<tensor_view<int const, space, 1>> const& sequences = {},
                stream on = {}) const noexcept {
    static_assert(std::is_same_v<std::remove_const_t<Q>, T> && std::is_same_v<O, T>,
                  "omnisparse: q and out must have the dtype of the cache");
    auto const& ref = cache.ref();
    decode_call<T, space> const call{q, out, lse, sequences, policies_.scale};
    if (status const bad = check_functor(); !bad.ok()) return bad;
    if (status const bad = detail::check_decode_call(call, ref); !bad.ok()) return bad;
    if (std::same_as<observed<Fetcher>, observation::sink_and_mean> &&
        detail::first_of(policies_.fetcher) != ref.sink_keys) {
      return {status_code::invalid_option,
              "omnisparse: the fetching policy's 'first' differs from the sink_keys that the cache "
              "was made with: make them equal"};
    }
    detail::memory_of_call memory;
    memory.reads(q);
    memory.reads(sequences);
    memory.writes(out);
    memory.writes(lse);
    memory.works_in(ws.data, ws.bytes);
    if (status const bad = memory.check(detail::out_is_shared); !bad.ok()) return bad;
    if (cache.shares_memory(out) || cache.shares_memory(lse)) {
      return {status_code::invalid_view, detail::out_is_shared};
    }
    if (cache.shares_memory(ws)) {
      return {status_code::invalid_view,
              "omnisparse: the workspace lies in the cache's memory: give it memory of its own"};
    }
    return engine<Backend>::decode(backend_, policies_, call, ref, ws, on);
  }
  /// The same without lse.
  template <class Q, class T, class O>
  status decode(tensor_view<Q, space> const& q, kv_cache<Backend, T> const& cache,
                tensor_view<O, space> const& out, workspace_view<space> ws,
                std::type_identity_t<tensor_view<int const, space, 1>> const& sequences = {},
                stream on = {}) const noexcept {
    return decode(q, cache, out, lse_view<T, space>{}, ws, sequences, on);
  }

 private:
  // A copy with one option exchanged.
  template <class Option>
  constexpr attention with_option(Option policies_type::* which, Option value) const noexcept {
    attention copy = *this;
    copy.policies_.*which = value;
    return copy;
  }

  static constexpr bool writing = true, planning = false;

  template <class Q, class K, class V, class O, class S>
  constexpr auto make_call(tensor_view<Q, S> const& q, tensor_view<K, S> const& k,
                           tensor_view<V, S> const& v, tensor_view<O, S> const& out,
                           lse_view<O, S> const& lse, inputs<space> const& in,
                           bool writes = writing) const noexcept {
    using T = std::remove_const_t<Q>;
    constexpr bool one_dtype = std::is_same_v<std::remove_const_t<K>, T> &&
                               std::is_same_v<std::remove_const_t<V>, T> && std::is_same_v<O, T>;
    static_assert(std::is_same_v<S, space>,
                  "omnisparse: these views point into another memory space than the backend reads: "
                  "copy the data there and make tensor_view<T, device> or tensor_view<T, host>");
    static_assert(element<T>, "omnisparse: a dtype is float, double, bfloat16 or half");
    static_assert(one_dtype, "omnisparse: q, k, v and out have one dtype, and out is not const");
    if constexpr (std::is_same_v<S, space> && element<T> && one_dtype) {
      return attention_call<T, S>{shape_of(q, k), q, k, v, out, lse, in, policies_.scale, writes};
    } else {
      return attention_call<float, space>{};
    }
  }

  // Options of the functor, its policies and its backend.
  constexpr status check_functor() const noexcept {
    if constexpr (requires(Backend b) { b.threads; }) {
      if (backend_.threads < 0) {
        return {status_code::invalid_option,
                "omnisparse: a backend's threads must be >= 0, 0 for as many as OpenMP would use"};
      }
    }
    return detail::check_options(policies_);
  }

  template <class T>
  status check(attention_call<T, space> const& call, bool writes) const noexcept {
    if (status const bad = detail::check_call(call, writes); !bad.ok()) return bad;
    if (status const bad = check_functor(); !bad.ok()) return bad;
    return engine<Backend>::template can_run<T>(backend_, policies_, call.shape);
  }

  // What attends writes out and lse; `memory` may know of more that is read.
  template <class T>
  static status check_outputs(detail::memory_of_call& memory, attention_call<T, space> const& call,
                              workspace_view<space> ws) noexcept {
    detail::add_reads(memory, call);
    memory.writes(call.out);
    memory.writes(call.lse);
    memory.works_in(ws.data, ws.bytes);
    return memory.check(detail::out_is_shared);
  }

  Backend backend_;
  policies_type policies_;
};

template <class Backend>
attention(Backend) -> attention<Backend>;

}  // namespace omnisparse

#include <omnisparse/backend/reference.hpp>
#if defined(__CUDACC__)
#  if __has_include(<omnisparse/backend/cuda.cuh>)
#    include <omnisparse/backend/cuda.cuh>
#  endif
#else
#  include <omnisparse/backend/cpu.hpp>
#endif
