/// @file
/// The CPU backend: what the functor calls.
#pragma once

#include <omnisparse/backend/cpu/attend.hpp>
#include <omnisparse/backend/cpu/crossover.hpp>
#include <omnisparse/backend/cpu/decode.hpp>
#include <omnisparse/backend/cpu/plan.hpp>
#include <omnisparse/cache/check_decode.hpp>
#include <omnisparse/core/backend.hpp>
#include <omnisparse/plan/check.hpp>
#include <omnisparse/plan/dense.hpp>
#include <omnisparse/rescue/none.hpp>

#include <utility>

namespace omnisparse {

template <>
struct engine<backend::cpu> {
  template <class T, class Policies>
  static constexpr status can_run(backend::cpu, Policies const&, attention_shape const&) noexcept {
    return {};
  }

  template <class T, class Policies>
  static constexpr crossover_point crossover_of(backend::cpu, Policies const&,
                                                attention_shape const&) noexcept {
    return tuning::cpu_crossover<Policies>;
  }

  template <class T, class Policies>
  static std::size_t workspace_bytes(backend::cpu b, Policies const& p,
                                     attention_shape const& shape) noexcept {
    detail::arena count;
    memory<T, Policies>::take(count, shape, p, cpu::thread_count(b.threads));
    return count.needed();
  }

  template <class T, class Policies>
  static status plan(backend::cpu b, Policies const& p, attention_call<T, host> const& call,
                     plan_view<host> const& plan, workspace_view<host> ws, in_order) noexcept {
    auto taken = take_fitting(ws, b, [&](detail::arena& arena, int threads) {
      return memory<T, Policies>::take(arena, call.shape, p, threads);
    });
    if (!taken.second) return detail::workspace_refusal();
    auto& m = taken.first;
    cpu::pack_call(call, m.attend.threads, m.attend.kv);
    cpu::choose(call, p, plan, m.attend, m.plan);
    cpu::rescue(call, p, plan, m.attend, m.plan, false);
    return {};
  }

  template <class T, class Policies>
  static status run(backend::cpu b, Policies const& p, attention_call<T, host> const& call,
                    plan_view<host> const& plan, workspace_view<host> ws, in_order) noexcept {
    if (status const bad = check_plan(plan, call.shape); !bad.ok()) return bad;
    auto taken = take_fitting(ws, b, [&](detail::arena& arena, int threads) {
      return cpu::attend_memory<accumulator_t<T>>::take(arena, call.shape, threads);
    });
    if (!taken.second) return detail::workspace_refusal();
    auto& m = taken.first;
    cpu::pack_call(call, m.threads, m.kv);
    cpu::clear_missing_rows(call);
    cpu::attend_rows(call, {.plan = plan}, p.near, p.limit, m, cpu::store_rows(call));
    return {};
  }

  // One pass plans and attends: what the active rows see is known from the attention itself, so the
  // rescue costs no second product, and only rescued rows are attended to again.
  template <class T, class Policies>
  static status attend(backend::cpu b, Policies const& p, attention_call<T, host> const& call,
                       workspace_view<host> ws, in_order) noexcept {
    auto taken = take_fitting(ws, b, [&](detail::arena& arena, int threads) {
      return memory<T, Policies>::take(arena, call.shape, p, threads);
    });
    if (!taken.second) return detail::workspace_refusal();
    auto& m = taken.first;
    cpu::pack_call(call, m.attend.threads, m.attend.kv);
    cpu::clear_missing_rows(call);
    auto const store = cpu::store_rows(call);
    if constexpr (detail::is_dense<Policies>) {
      cpu::attend_rows(call, {}, p.near, p.limit, m.attend, store);
    } else {
      auto const unrescued = cpu::classes_of(row_class::lazy, row_class::active);
      cpu::choose(call, p, m.view, m.attend, m.plan);
      cpu::attend_rows(call, {m.view, unrescued}, p.near, p.limit, m.attend,
                       [&](int bb, int h, int i, auto const& tile, int r, auto const& exactly) {
                         if constexpr (cpu::wants<Policies>::coverage) {
                           m.plan.lse(bb, h, i) = cpu::tile_lse(tile, r);
                         }
                         store(bb, h, i, tile, r, exactly);
                       });
      if constexpr (!std::same_as<decltype(p.rescue), rescue::none>) {
        cpu::rescue(call, p, m.view, m.attend, m.plan, true);
        auto const rescued = cpu::classes_of(row_class::rescued);
        cpu::attend_rows(call, {m.view, rescued}, p.near, p.limit, m.attend, store);
      }
    }
    return {};
  }

  template <class T>
  static std::size_t decode_workspace_bytes(backend::cpu b, kv_cache_ref<host, T> const& cache,
                                            int batch, int q_heads) noexcept {
    detail::arena count;
    take_decode(count, cache, batch, q_heads, cpu::thread_count(b.threads));
    return count.needed();
  }

  template <class T, class Policies>
  static status decode(backend::cpu b, Policies const& p, decode_call<T, host> const& call,
                       kv_cache_ref<host, T> const& cache, workspace_view<host> ws,
                       in_order) noexcept {
    if (status const bad = check_decode(call, cache); !bad.ok()) return bad;
    auto const taken = take_fitting(ws, b, [&](detail::arena& arena, int threads) {
      return take_decode(arena, cache, call.q.extent(0), call.q.extent(1), threads);
    });
    if (!taken.second) return detail::workspace_refusal();
    cpu::decode(call, cache, p, taken.first);
    return {};
  }

 private:
  // All memory of planning and attending, and of the plan of a call that does both.
  template <class T, class Policies>
  struct memory {
    using A = accumulator_t<T>;
    cpu::attend_memory<A> attend;
    cpu::plan_memory<A> plan;
    plan_view<host> view;

    template <class Arena>
    static memory take(Arena& arena, attention_shape const& shape, Policies const& p,
                       int threads) noexcept {
      memory m;
      m.attend = cpu::attend_memory<A>::take(arena, shape, threads);
      m.plan = cpu::plan_memory<A>::take(arena, shape, p, threads);
      if constexpr (!detail::is_dense<Policies>) {
        m.view.shape = shape;
        m.view.chunk_rows = p.rows.rows > 0 ? p.rows.rows : larger(1, shape.q_tokens);
        m.view.capacity = shape.kv_tokens;
        auto const lists = static_cast<std::size_t>(m.view.list_count());
        m.view.rows = arena.template take<row_class>(static_cast<std::size_t>(m.view.row_count()));
        m.view.kept_counts = arena.template take<int>(lists);
        m.view.recalls = arena.template take<float>(lists);
        m.view.kept = arena.template take<int>(lists * static_cast<std::size_t>(shape.kv_tokens));
      }
      return m;
    }
  };

  template <class Arena, class T>
  static auto take_decode(Arena& arena, kv_cache_ref<host, T> const& cache, int batch, int q_heads,
                          int threads) noexcept {
    return cpu::decode_memory<accumulator_t<T>>::take(arena, batch * cache.kv_heads,
                                                      q_heads / cache.kv_heads, cache.dim,
                                                      cache.lane_pages, threads);
  }

  // take(arena, threads) for as many threads as fit, and whether even one does.
  template <class Take>
  static auto take_fitting(workspace_view<host> ws, backend::cpu b, Take const& take) noexcept {
    for (int threads = cpu::thread_count(b.threads);; --threads) {
      detail::arena arena(ws.data, ws.bytes);
      auto m = take(arena, threads);
      bool const fits = ws.data != nullptr && arena.fits();
      if (fits || threads <= 1) return std::pair(m, fits);
    }
  }
};

}  // namespace omnisparse
