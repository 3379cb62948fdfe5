/// @file
/// The CUDA backend: what the functor calls. For nvcc only.
#pragma once

#include <omnisparse/backend/cuda/backend.cuh>
#include <omnisparse/backend/cuda/chunk_range.cuh>
#include <omnisparse/backend/cuda/observe.cuh>
#include <omnisparse/backend/cuda/paths.cuh>
#include <omnisparse/backend/cuda/select.cuh>
#include <omnisparse/backend/cuda/tuning/crossover.hpp>
#include <omnisparse/core/backend.hpp>
#include <omnisparse/core/call.hpp>
#include <omnisparse/core/workspace.hpp>
#include <omnisparse/plan/check.hpp>
#include <omnisparse/plan/dense.hpp>
#include <omnisparse/rescue/none.hpp>

namespace omnisparse {

template <>
struct engine<backend::cuda> {
  /// The message of an ok status names the path that a call with 16-byte aligned views takes.
  template <class T, class Policies>
  static status can_run(backend::cuda b, Policies const&, attention_shape const& shape) noexcept {
    return launch::path_of<T>(b.path, shape).why;
  }

  template <class T, class Policies>
  static crossover_point crossover_of(backend::cuda b, Policies const&,
                                      attention_shape const& shape) noexcept {
    return tuning::cuda_crossover<Policies>(launch::path_of<T>(b.path, shape).hopper);
  }

  template <class T, class Policies>
  static std::size_t workspace_bytes(backend::cuda, Policies const& p,
                                     attention_shape const& shape) noexcept {
    detail::arena whole_call, other_plan;
    memory<T, Policies>::take(whole_call, shape, p);
    attend_memory<T>::take(other_plan, shape, short_chunk, p.limit, launch::packing::least);
    return larger(whole_call.needed(), other_plan.needed());
  }

  template <class T, class Policies>
  static status plan(backend::cuda b, Policies const& p, attention_call<T, device> const& call,
                     plan_view<device> const& plan, workspace_view<device> ws,
                     cudaStream_t on) noexcept {
    return with_memory<T>(b, p, call, ws, [&](auto const& path, auto const& m) {
      return decide(path.keys_only(), p, call, plan, m, m.attend.lse, on);
    });
  }

  template <class T, class Policies>
  static status run(backend::cuda b, Policies const& p, attention_call<T, device> const& call,
                    plan_view<device> const& plan, workspace_view<device> ws,
                    cudaStream_t on) noexcept {
    if (status const bad = detail::check_plan_frame(plan, call.shape); !bad.ok()) return bad;
    // Laid out for the plan's chunks, not the functor's. Where these leave less room for packed
    // lists, fewer are packed at a time, and the keys of rescued rows are split less: such a run
    // may differ in the last bits from one in a larger workspace.
    auto const lay_out = [&](launch::packing room, attend_memory<T>& m) {
      detail::arena arena(ws.data, ws.bytes);
      m = attend_memory<T>::take(arena, call.shape, plan.chunk_rows, p.limit, room);
      return ws.data != nullptr && arena.fits();
    };
    attend_memory<T> m;
    if (!lay_out(launch::packing::usual, m) && !lay_out(launch::packing::least, m)) {
      return {status_code::workspace_too_small,
              "omnisparse: the workspace is too small for this plan: give at least "
              "workspace_bytes(shape) bytes, counted for this dtype by the functor "
              ".with(chunk{plan.chunk_rows})"};
    }
    return with_path(b, call, m, [&](auto const& path) {
      auto const lse = call.lse.is_null() ? m.lse : call.lse;
      status s = path.near(call, p.near, p.limit, lse, on);
      if (s.ok()) s = path.far(call, p.near, p.limit, plan, lse, on);
      if (s.ok()) s = path.rescued(call, p.near, p.limit, plan, lse, on);
      return s;
    });
  }

  template <class T, class Policies>
  static status attend(backend::cuda b, Policies const& p, attention_call<T, device> const& call,
                       workspace_view<device> ws, cudaStream_t on) noexcept {
    return with_memory<T>(b, p, call, ws, [&](auto const& path, auto const& m) {
      auto const lse = call.lse.is_null() ? m.attend.lse : call.lse;
      if constexpr (detail::is_dense<Policies>) {
        return path.dense(call, p.limit, lse, on);
      } else {
        plan_view<device> plan = m.plan;
        plan.capacity = longest_list(p, call);
        status s = decide(path, p, call, plan, m, lse, on);
        if constexpr (rescues<Policies>) {
          int const* const some = detail::wants<Policies>::coverage ? path.some_rescued() : nullptr;
          if (s.ok()) s = path.rescued(call, p.near, p.limit, plan, lse, on, some);
        }
        return s;
      }
    });
  }

 private:
  template <class Policies>
  static constexpr bool rescues = !std::same_as<decltype(Policies::rescue), rescue::none>;
  // Every workspace has room to attend by plans of chunks of 64 rows and more, for a hundredth of
  // what packed lists take. Counted at half, as the memory does not fall evenly with the chunk.
  static constexpr int short_chunk = 32;

  // The memory of attending, whichever path a call takes.
  template <class T>
  struct attend_memory {
    lse_view<T, device> lse;  ///< [batch, q_heads, q_tokens]
    launch::path_memory<T> paths;

    static attend_memory take(detail::arena& arena, attention_shape const& shape, int chunk_rows,
                              mask limit, launch::packing room = launch::packing::usual) noexcept {
      attend_memory m;
      m.lse = {nullptr, {shape.batch, shape.q_heads, shape.q_tokens}};
      m.lse.data = arena.take<float>(static_cast<std::size_t>(m.lse.size()));
      m.paths = launch::path_memory<T>::take(arena, shape, chunk_rows, limit, room);
      return m;
    }
  };

  // The memory of a call that plans, too.
  template <class T, class Policies>
  struct memory {
    attend_memory<T> attend;
    plan_view<device> plan;  ///< of a call that plans and attends
    chunk_range range;       ///< how many chunks are scored at a time
    scores_view scores;
    launch::observe_memory<Policies> observe;
    launch::select_memory select;

    static memory take(detail::arena& arena, attention_shape const& shape,
                       Policies const& p) noexcept {
      int const chunk_rows = p.rows.rows > 0 ? p.rows.rows : larger(1, shape.q_tokens);
      memory m;
      m.attend = attend_memory<T>::take(arena, shape, chunk_rows, p.limit);
      m.plan.shape = shape;
      m.plan.chunk_rows = chunk_rows;
      m.plan.capacity = shape.kv_tokens;
      if constexpr (!detail::is_dense<Policies>) {
        auto const lists = static_cast<std::size_t>(m.plan.list_count());
        m.plan.rows = arena.take<row_class>(static_cast<std::size_t>(m.plan.row_count()));
        m.plan.kept_counts = arena.take<int>(lists);
        m.plan.recalls = arena.take<float>(lists);
        m.plan.kept = arena.take<int>(lists * static_cast<std::size_t>(shape.kv_tokens));
        m.range = {0, scored_at_once(shape, m.plan.chunks())};
        m.scores = scores_view::take(arena, shape, m.range);
        m.observe = launch::observe_memory<Policies>::take(arena, shape, p, m.range);
        m.select = launch::select_memory::take(arena, shape, m.range);
      }
      return m;
    }
  };

  // Chunks whose scores fit 128 MB together, at least one.
  static int scored_at_once(attention_shape const& shape, int chunks) noexcept {
    std::int64_t const each =
        std::int64_t{8} * shape.batch * shape.kv_heads * round_up(larger(1, shape.kv_tokens), 128);
    return static_cast<int>(clamped<std::int64_t>(
        (std::int64_t{128} << 20) / larger<std::int64_t>(1, each), 1, larger(1, chunks)));
  }

  // Most tokens that a list of this call can hold. Where the budget looks at nothing and no length
  // or segment hides on the device, the host asks it; else every key.
  template <class T, class Policies>
  static int longest_list(Policies const& p, attention_call<T, device> const& call) noexcept {
    attention_shape const& shape = call.shape;
    if constexpr (std::same_as<observed<decltype(p.budget)>, observation::nothing>) {
      if (call.in.segments.is_null() && call.in.q_lengths.is_null() &&
          call.in.kv_lengths.is_null()) {
        sequence_extent const extent{shape.q_tokens, shape.kv_tokens};
        int const rows = p.rows.rows > 0 ? p.rows.rows : larger(1, shape.q_tokens);
        int most = 0;
        for (std::int64_t first = 0; first < shape.q_tokens; first += rows) {
          int const begin = static_cast<int>(first);
          int const end = static_cast<int>(smaller<std::int64_t>(first + rows, shape.q_tokens));
          int const tokens = candidates_of(p.near, extent.position(begin), extent.position(end - 1),
                                           shape.kv_tokens, p.limit)
                                 .size();
          most = larger(most, clamped(p.budget.tokens({}, {tokens}), 0, tokens));
        }
        return most;
      }
    }
    return shape.kv_tokens;
  }

  // Chooses the path and calls act(path); not where there is nothing to do.
  template <class T, class Act>
  static status with_path(backend::cuda b, attention_call<T, device> const& call,
                          attend_memory<T> const& m, Act const& act) noexcept {
    if (call.shape.batch == 0 || call.shape.q_heads == 0 || call.shape.q_tokens == 0) return {};
    return launch::with_path<T>(b.path, call, m.paths, act);
  }

  // Lays out the memory of a call that plans, chooses the path and calls act(path, memory).
  template <class T, class Policies, class Act>
  static status with_memory(backend::cuda b, Policies const& p,
                            attention_call<T, device> const& call, workspace_view<device> ws,
                            Act const& act) noexcept {
    detail::arena arena(ws.data, ws.bytes);
    auto const m = memory<T, Policies>::take(arena, call.shape, p);
    if (ws.data == nullptr || !arena.fits()) return detail::workspace_refusal();
    return with_path(b, call, m.attend, [&](auto const& path) { return act(path, m); });
  }

  // Near field, row classes, lists, far part, rescue: decides and, unless the path looks at keys
  // only, attends on the way. Rescued rows are named, not attended to.
  template <class Path, class T, class Policies>
  static status decide(Path const& path, Policies const& p, attention_call<T, device> const& call,
                       plan_view<device> const& plan, memory<T, Policies> const& m,
                       lse_view<T, device> const& lse, cudaStream_t on) noexcept {
    using wants = detail::wants<Policies>;
    constexpr bool needs_far = Path::attends || wants::coverage;  // what the rescue looks at
    status s;
    if constexpr (needs_far || wants::far) s = path.near(call, p.near, p.limit, lse, on);
    if (s.ok()) {
      if constexpr (wants::far) s = launch::classify_far(call, p, lse, plan, m.observe, on);
      else s = launch::classify(call, p, plan, m.observe, on);
    }
    for (int first = 0; s.ok() && first < plan.chunks(); first += m.range.count) {
      chunk_range const range{first, smaller(m.range.count, plan.chunks() - first)};
      s = path.probe(call, p, plan, range, m.scores, m.observe, on);
      if (s.ok()) s = launch::select(call, p, plan, range, m.scores, m.select, on);
    }
    if constexpr (needs_far) {
      if (s.ok()) s = path.far(call, p.near, p.limit, plan, lse, on);
    }
    if constexpr (rescues<Policies>) {
      if (s.ok()) s = launch::rescue(call, p, lse, plan, m.observe, on, path.some_rescued());
    }
    return s;
  }
};

}  // namespace omnisparse
