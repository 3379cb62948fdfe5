/// @file
/// Sorts the rows of a call by the classes of a plan, for the kernels that attend to gathered rows.
#pragma once

#include <omnisparse/backend/cuda/backend.cuh>
#include <omnisparse/backend/cuda/kernel/gather_rows.cuh>
#include <omnisparse/core/call.hpp>

namespace omnisparse::launch {

/// Fills `schedule`, made by row_schedule::take for this shape and the plan's chunks: the rows of
/// `classes` sorted, and their tiles. Rows that do not exist get no place, whatever their class.
/// `some`, where not null, is 0 on the device where the plan has no such rows. Asynchronous on
/// `on`.
template <class T>
status gather_rows(attention_call<T, device> const& call, near_field const& near, mask limit,
                   plan_view<device> const& plan, kernel::class_mask classes,
                   kernel::row_schedule const& schedule, cudaStream_t on,
                   int const* some = nullptr) noexcept {
  OMNISPARSE_ASSERT(smaller(plan.chunk_rows, larger(1, call.shape.q_tokens)) ==
                    schedule.chunk_rows);
  int const blocks = schedule.units(call.shape) * schedule.parts;
  if (blocks == 0) return {};
  kernel::gather_task const task{call.shape, call.in, near, limit, plan, classes, schedule, some};
  constexpr int threads = 256, scan_threads = 1024;
  kernel::count_rows<threads><<<blocks, threads, 0, on>>>(task);
  kernel::scan_rows<scan_threads><<<1, scan_threads, 0, on>>>(task);
  kernel::place_rows<threads><<<blocks, threads, 0, on>>>(task);
  return detail::launch_status();
}

}  // namespace omnisparse::launch
