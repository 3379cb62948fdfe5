/// @file
/// The CPU backend: what the functor calls.
#pragma once

#include <omnisparse/backend/cpu/attend.hpp>
#include <omnisparse/core/backend.hpp>
#include <omnisparse/plan/check.hpp>

namespace omnisparse {

template <>
struct engine<backend::cpu> {
  template <class T, class Policies>
  static constexpr status can_run(backend::cpu, Policies const&,
                                  attention_shape const& shape) noexcept {
    if (shape.dim % 8 != 0) {
      return {status_code::unsupported,
              "omnisparse: the CPU backend takes a head dimension D that is a multiple of 8: pad q, "
              "k and v with zeros"};
    }
    return {};
  }

  template <class T, class Policies>
  static std::size_t workspace_bytes(backend::cpu b, Policies const&,
                                     attention_shape const& shape) noexcept {
    detail::arena count;
    cpu::attend_memory<accumulator_t<T>>::take(count, shape, cpu::thread_count(b.threads));
    return count.needed();
  }

  template <class T, class Policies>
  static status run(backend::cpu b, Policies const& p, attention_call<T, host> const& call,
                    plan_view<host> const& plan, workspace_view<host> ws, in_order) noexcept {
    if (status const bad = check_plan(plan, call.shape); !bad.ok()) return bad;
    detail::arena arena(ws.data, ws.bytes);
    auto m = cpu::attend_memory<accumulator_t<T>>::take(arena, call.shape,
                                                        cpu::thread_count(b.threads));
    if (ws.data == nullptr || !arena.fits()) return detail::workspace_refusal();
    cpu::pack_call(call, m.threads, m.kv);
    cpu::clear_missing_rows(call);
    cpu::attend_rows(call, {.plan = plan}, p.near, p.limit, m, cpu::store_rows(call));
    return {};
  }

  template <class T, class Policies>
  static status attend(backend::cpu b, Policies const& p, attention_call<T, host> const& call,
                       workspace_view<host> ws, in_order) noexcept {
    detail::arena arena(ws.data, ws.bytes);
    auto m = cpu::attend_memory<accumulator_t<T>>::take(arena, call.shape,
                                                        cpu::thread_count(b.threads));
    if (ws.data == nullptr || !arena.fits()) return detail::workspace_refusal();
    cpu::pack_call(call, m.threads, m.kv);
    cpu::clear_missing_rows(call);
    cpu::attend_rows(call, {}, p.near, p.limit, m, cpu::store_rows(call));
    return {};
  }
};

}  // namespace omnisparse
