/// @file
/// The portable path: attention by mma.sync, for compute capability 8.0 and newer and any layout.
///
/// bfloat16 and half multiply as they are; float by three tf32 products each, which keeps 21 bits.
/// Kernels of D 64, 128 and 256 take heads of up to as many elements. Lists are read through their
/// indices, nothing is packed.
#pragma once

#include <omnisparse/backend/cuda/gather.cuh>
#include <omnisparse/backend/cuda/kernel/portable_attend.cuh>

namespace omnisparse::launch {

/// Memory of the portable path: the schedule of sorted rows.
template <class T>
struct portable_memory {
  kernel::row_schedule schedule = {};

  static portable_memory take(omnisparse::detail::arena& arena, attention_shape const& shape,
                              int chunk_rows, mask limit) noexcept {
    int const rows = tuning::portable_attend_for(sizeof(T), shape.dim).rows;
    return {kernel::row_schedule::take(arena, shape, chunk_rows, limit, rows)};
  }
};

/// Do all rows of a view begin at multiples of 16 bytes?
template <class T>
bool rows_are_aligned(tensor_view<T, device> const& x) noexcept {
  constexpr std::int64_t each = 16 / sizeof(T);
  if (reinterpret_cast<std::uintptr_t>(x.data) % 16 != 0) return false;
  for (int d = 0; d < 3; ++d) {
    if (x.extent(d) > 1 && x.stride(d) % each != 0) return false;
  }
  return true;
}

/// Runs the kernel over all tiles of a schedule. Asynchronous on `on`.
template <class T, int D, bool Values>
status portable_attend(collective::portable_task<T> task, cudaStream_t on) noexcept {
  if (task.schedule.most_tiles == 0) return {};
  task.aligned_q = rows_are_aligned(task.call.q);
  task.aligned_k = rows_are_aligned(task.call.k);
  task.aligned_v = rows_are_aligned(task.call.v);
  task.aligned_out = rows_are_aligned(task.call.out);
  task.terms = collective::softmax_terms::of<T>(task.call.scale, task.call.shape.dim,
                                                task.call.shape.kv_tokens);
  auto const run = kernel::portable_attend<T, D, Values>;
  constexpr int bytes = sizeof(kernel::portable_shared<T, D, Values>);
  static_assert(bytes <= 99 << 10);
  cudaError_t const error =
      cudaFuncSetAttribute(run, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return detail::device_status(error);
  run<<<task.schedule.most_tiles, tuning::portable_attend::threads, bytes, on>>>(task);
  return detail::launch_status();
}

/// All rows in order, of one class: lazy rows see the near field, rescued ones all there is.
template <class T, int D, bool Values>
status portable_in_order(attention_call<T, device> const& call, near_field const& near, mask limit,
                         row_class all, lse_view<T, device> const& lse, cudaStream_t on) noexcept {
  constexpr int rows = tuning::portable_attend_for(sizeof(T), D).rows;
  return portable_attend<T, D, Values>(
      {call, lse, near, limit, kernel::row_schedule::in_order(call.shape, rows, all)}, on);
}

/// The rows of one class of a plan.
template <class T, int D, bool Values>
status portable_class(attention_call<T, device> const& call, near_field const& near, mask limit,
                      plan_view<device> const& plan, row_class kind, lse_view<T, device> const& lse,
                      portable_memory<T> const& memory, cudaStream_t on,
                      int const* some = nullptr) noexcept {
  kernel::class_mask const classes{1u << static_cast<unsigned>(kind)};
  status const s = gather_rows(call, near, limit, plan, classes, memory.schedule, on, some);
  if (!s.ok()) return s;
  return portable_attend<T, D, Values>({call, lse, near, limit, memory.schedule, plan}, on);
}

/// Every row sees its near field: overwrites out and lse; without Values lse only.
template <class T, int D, bool Values>
status portable_near(attention_call<T, device> const& call, near_field const& near, mask limit,
                     lse_view<T, device> const& lse, portable_memory<T> const&,
                     cudaStream_t on) noexcept {
  return portable_in_order<T, D, Values>(call, near, limit, row_class::lazy, lse, on);
}

/// Every row sees all that the mask allows: overwrites out and lse; without Values lse only.
template <class T, int D, bool Values>
status portable_dense(attention_call<T, device> const& call, mask limit,
                      lse_view<T, device> const& lse, portable_memory<T> const&,
                      cudaStream_t on) noexcept {
  return portable_in_order<T, D, Values>(call, {}, limit, row_class::rescued, lse, on);
}

/// After near: active rows see near field and list: overwrites their out and lse; without Values
/// lse only.
template <class T, int D, bool Values>
status portable_far(attention_call<T, device> const& call, near_field const& near, mask limit,
                    plan_view<device> const& plan, lse_view<T, device> const& lse,
                    portable_memory<T> const& memory, cudaStream_t on) noexcept {
  return portable_class<T, D, Values>(call, near, limit, plan, row_class::active, lse, memory, on);
}

/// Rescued rows see all that the mask allows: overwrites their out and lse; without Values lse
/// only.
template <class T, int D, bool Values>
status portable_rescued(attention_call<T, device> const& call, near_field const& near, mask limit,
                        plan_view<device> const& plan, lse_view<T, device> const& lse,
                        portable_memory<T> const& memory, cudaStream_t on,
                        int const* some = nullptr) noexcept {
  return portable_class<T, D, Values>(call, near, limit, plan, row_class::rescued, lse, memory, on,
                                      some);
}

}  // namespace omnisparse::launch
