/// @file
/// The reference backend: the definition behind the same functor. Allocates; for tests and study.
#pragma once

#include <omnisparse/backend/cpu/reference.hpp>
#include <omnisparse/backend/cpu/reference_decode.hpp>
#include <omnisparse/backend/cpu/reference_plan.hpp>
#include <omnisparse/cache/check_decode.hpp>
#include <omnisparse/core/backend.hpp>
#include <omnisparse/core/workspace.hpp>
#include <omnisparse/plan/check.hpp>

namespace omnisparse {

template <>
struct engine<backend::reference> {
  using backend_type = backend::reference;

  template <class T, class Policies>
  static constexpr status can_run(backend_type, Policies const&, attention_shape const&) noexcept {
    return {};
  }

  // The definition is never run for its speed.
  template <class T, class Policies>
  static constexpr crossover_point crossover_of(backend_type, Policies const&,
                                                attention_shape const&) noexcept {
    return {};
  }

  template <class T, class Policies>
  static constexpr std::size_t workspace_bytes(backend_type, Policies const&,
                                               attention_shape const&) noexcept {
    return 0;
  }

  template <class T, class Policies>
  static status plan(backend_type, Policies const& p, attention_call<T, host> const& call,
                     plan_view<host> const& plan, workspace_view<host>, in_order) noexcept {
    cpu::reference_plan(call, p, plan);
    return {};
  }

  template <class T, class Policies>
  static status run(backend_type, Policies const& p, attention_call<T, host> const& call,
                    plan_view<host> const& plan, workspace_view<host>, in_order) noexcept {
    if (status const bad = check_plan(plan, call.shape); !bad.ok()) return bad;
    cpu::reference_attend(call, p.near, p.limit, plan);
    return {};
  }

  template <class T, class Policies>
  static status attend(backend_type, Policies const& p, attention_call<T, host> const& call,
                       workspace_view<host>, in_order) noexcept {
    attention_plan<host> const plan(call.shape, p.rows);
    cpu::reference_plan(call, p, plan.view());
    cpu::reference_attend(call, p.near, p.limit, plan.view());
    return {};
  }

  template <class T>
  static std::size_t decode_workspace_bytes(backend_type, kv_cache_ref<host, T> const&, int,
                                            int) noexcept {
    return 0;
  }

  template <class T, class Policies>
  static status decode(backend_type, Policies const& p, decode_call<T, host> const& call,
                       kv_cache_ref<host, T> const& cache, workspace_view<host>,
                       in_order) noexcept {
    if (status const bad = check_decode(call, cache); !bad.ok()) return bad;
    cpu::reference_decode(call, cache, p);
    return {};
  }
};

}  // namespace omnisparse
