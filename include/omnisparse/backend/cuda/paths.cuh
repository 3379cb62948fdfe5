/// @file
/// The two ways to attend, behind one face, and the choice between them.
#pragma once

#include <omnisparse/backend/cuda/backend.cuh>
#include <omnisparse/backend/cuda/device.cuh>
#include <omnisparse/backend/cuda/hopper.cuh>
#include <omnisparse/backend/cuda/hopper_probe.cuh>
#include <omnisparse/backend/cuda/observe.cuh>
#include <omnisparse/backend/cuda/portable.cuh>
#include <omnisparse/backend/cuda/tuning/head_dim.hpp>
#include <omnisparse/core/call.hpp>

#include <concepts>

namespace omnisparse::launch {

/// Memory of either path: which of them a call takes is known only when its views are.
template <class T>
struct path_memory {
  hopper_memory<T> hopper;
  portable_memory<T> portable;

  static path_memory take(detail::arena& arena, attention_shape const& shape, int chunk_rows,
                          mask limit, packing room = packing::usual) noexcept {
    detail::arena other = arena;
    path_memory m;
    m.hopper = hopper_memory<T>::take(arena, shape, chunk_rows, limit, shape.kv_tokens, room);
    m.portable = portable_memory<T>::take(other, shape, chunk_rows, limit);
    if (other.used() > arena.used()) arena = other;
    return m;
  }
};

/// The stages of attention, and probing, by one set of kernels: Hopper's (TMA, wgmma, packed
/// lists), or the portable ones (mma.sync), for every GPU from compute capability 8.0 on and every
/// layout. Without Values only lse is written.
template <class T, int D, bool Hopper, bool Values = true>
struct attend_path {
  static constexpr bool attends = Values;
  path_memory<T> memory;

  /// [1], 0 after `far`; `rescue` sets it and `rescued` does without a search where it is still 0.
  int* some_rescued() const noexcept {
    return Hopper ? memory.hopper.schedule.some : memory.portable.schedule.some;
  }
  constexpr auto keys_only() const noexcept { return attend_path<T, D, Hopper, false>{memory}; }
  status near(attention_call<T, device> const& call, near_field const& field, mask limit,
              lse_view<T, device> const& lse, cudaStream_t on) const noexcept {
    if constexpr (Hopper) {
      return hopper_near<T, D, Values>(call, field, limit, lse, memory.hopper, on);
    } else {
      return portable_near<T, D, Values>(call, field, limit, lse, memory.portable, on);
    }
  }
  status dense(attention_call<T, device> const& call, mask limit, lse_view<T, device> const& lse,
               cudaStream_t on) const noexcept {
    if constexpr (Hopper) {
      return hopper_dense<T, D, Values>(call, limit, lse, memory.hopper, on);
    } else {
      return portable_dense<T, D, Values>(call, limit, lse, memory.portable, on);
    }
  }
  status far(attention_call<T, device> const& call, near_field const& field, mask limit,
             plan_view<device> const& plan, lse_view<T, device> const& lse,
             cudaStream_t on) const noexcept {
    if constexpr (Hopper) {
      return hopper_far<T, D, Values>(call, field, limit, plan, lse, memory.hopper, on);
    } else {
      return portable_far<T, D, Values>(call, field, limit, plan, lse, memory.portable, on);
    }
  }
  status rescued(attention_call<T, device> const& call, near_field const& field, mask limit,
                 plan_view<device> const& plan, lse_view<T, device> const& lse, cudaStream_t on,
                 int const* some = nullptr) const noexcept {
    if constexpr (Hopper) {
      return hopper_rescued<T, D, Values>(call, field, limit, plan, lse, memory.hopper, on, some);
    } else {
      return portable_rescued<T, D, Values>(call, field, limit, plan, lse, memory.portable, on,
                                            some);
    }
  }
  template <class Policies>
  status probe(attention_call<T, device> const& call, Policies const& p,
               plan_view<device> const& plan, chunk_range range, scores_view const& scores,
               observe_memory<Policies> const& m, cudaStream_t on) const noexcept {
    if constexpr (Hopper && omnisparse::detail::wants<Policies>::probes) {
      return hopper_probe<D>(call, p, range, scores, m, memory.hopper, on);
    } else {
      return launch::probe(call, p, plan, range, scores, m, on);
    }
  }
};

/// Which path a call takes. `why` is ok with a sentence that says why, or the refusal.
struct path_choice {
  bool hopper = false;
  status why = {};
};

/// The choice for a dtype and shape, views aside. Asks the current device for its architecture.
template <class T>
path_choice path_of(backend::cuda_path wanted, attention_shape const& shape) noexcept {
  if constexpr (std::same_as<T, double>) {
    return {false,
            {status_code::unsupported,
             "omnisparse: the CUDA backend takes float, bfloat16 and half, not double: convert, or "
             "use backend::cpu"}};
  } else {
    if (!tuning::takes_dim(shape.dim)) {
      return {false,
              {status_code::unsupported,
               "omnisparse: the CUDA backend takes a head dimension D of 16 to 256 in steps of 8: "
               "pad q, k and v with zero columns and give softmax_scale{1 / sqrt(D)} of the D "
               "before"}};
    }
    if (wanted != backend::cuda_path::automatic && wanted != backend::cuda_path::portable) {
      return {false,
              {status_code::invalid_option,
               "omnisparse: the CUDA path is cuda_path::automatic or cuda_path::portable: choose "
               "one of them"}};
    }
    device_traits traits;
    if (status const bad = read_device(traits); !bad.ok()) return {false, bad};
    auto const portable = [](char const* why) {
      return path_choice{false, {status_code::ok, why}};
    };
    if (wanted == backend::cuda_path::portable) return portable("portable path: asked for");
    if constexpr (std::same_as<T, float>) {
      return portable("portable path: float has no Hopper kernels");
    } else {
      if (shape.dim > 128) return portable("portable path: D beyond 128 has no Hopper kernels");
      if (status const no = hopper_can_run<T>(shape); !no.ok()) return portable(no.message);
      return {true, {status_code::ok, "Hopper path: TMA and wgmma, 16-bit dtype, D up to 128"}};
    }
  }
}

/// Calls act(path) with the path and the head dimension of this call as types.
template <class T, class Act>
status with_path(backend::cuda_path wanted, attention_call<T, device> const& call,
                 path_memory<T> const& m, Act const& act) noexcept {
  path_choice const choice = path_of<T>(wanted, call.shape);
  if (!choice.why.ok()) return choice.why;
  if constexpr (std::same_as<T, double>) {
    return choice.why;
  } else {
    if constexpr (!std::same_as<T, float>) {
      if (choice.hopper && hopper_can_read(call)) {
        return tuning::kernel_dim(call.shape.dim) == 64 ? act(attend_path<T, 64, true>{m})
                                                        : act(attend_path<T, 128, true>{m});
      }
    }
    switch (tuning::kernel_dim(call.shape.dim)) {
      case 64:
        return act(attend_path<T, 64, false>{m});
      case 128:
        return act(attend_path<T, 128, false>{m});
      default:
        return act(attend_path<T, 256, false>{m});
    }
  }
}

}  // namespace omnisparse::launch
