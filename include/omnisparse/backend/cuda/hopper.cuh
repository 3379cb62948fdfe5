/// @file
/// The Hopper path: attention by the copy engine and warpgroup products, compute capability 9.0.
#pragma once

#include <omnisparse/backend/cuda/device.cuh>
#include <omnisparse/backend/cuda/gather.cuh>
#include <omnisparse/backend/cuda/hopper_memory.cuh>
#include <omnisparse/backend/cuda/kernel/architecture_mark.cuh>
#include <omnisparse/backend/cuda/kernel/hopper_attend.cuh>
#include <omnisparse/backend/cuda/kernel/merge_splits.cuh>
#include <omnisparse/backend/cuda/tensor_map.cuh>

namespace omnisparse::launch {

/// Can the Hopper kernels take this dtype and shape, on the current device? Refuses in a sentence.
template <class T>
status hopper_can_run(attention_shape const& shape) noexcept {
  static_assert(std::is_same_v<T, bfloat16> || std::is_same_v<T, half>);
  if (!tuning::takes_dim(shape.dim) || tuning::kernel_dim(shape.dim) > 128) {
    return {status_code::unsupported,
            "omnisparse: the Hopper kernels take a head dimension D of 16 to 128 in steps of 8"};
  }
  device_traits traits;
  if (status const bad = read_device(traits); !bad.ok()) return bad;
  if (traits.architecture != 90) {
    return {status_code::unsupported,
            "omnisparse: the Hopper kernels need a GPU of compute capability 9.0"};
  }
  cudaFuncAttributes mark = {};
  cudaError_t const error = cudaFuncGetAttributes(&mark, kernel::architecture_mark<>);
  if (error != cudaSuccess) return detail::device_status(error);
  if (mark.sharedSizeBytes == 0) {
    return {status_code::unsupported,
            "omnisparse: this program was not compiled for sm_90a, which the Hopper kernels need: "
            "add 90a to the architectures"};
  }
  if (tensor_map_encoder() == nullptr) {
    return {status_code::unsupported,
            "omnisparse: the driver has no cuTensorMapEncodeTiled, which the Hopper kernels need"};
  }
  return {};
}

/// Can the copy engine read and write the views of this call? Null views are not looked at.
template <class T>
bool hopper_can_read(attention_call<T, device> const& call) noexcept {
  return is_copyable(call.q) && is_copyable(call.k) && (call.v.is_null() || is_copyable(call.v)) &&
         (call.out.is_null() || is_copyable(call.out));
}

/// Runs the kernel over the items of a task, at most `most_items` of them. `task.counter` is 0.
/// Asynchronous on `on`.
template <class T, int D, bool Gathered, bool Values>
status launch_attend(collective::attend_task<T> const& given, kernel::attend_maps const& maps,
                     std::int64_t most_items, cudaStream_t on) noexcept {
  if (most_items == 0) return {};
  collective::attend_task<T> task = given;
  attention_shape const& shape = task.call.shape;
  task.terms = collective::softmax_terms::of<T>(task.call.scale, shape.dim, shape.kv_tokens);
  device_traits traits;
  if (status const bad = read_device(traits); !bad.ok()) return bad;
  auto const run = kernel::hopper_attend<T, D, Gathered, Values>;
  constexpr int bytes = kernel::attend_shared_bytes<D, Gathered, Values>;
  cudaError_t const error =
      cudaFuncSetAttribute(run, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return detail::device_status(error);
  int const blocks = static_cast<int>(smaller<std::int64_t>(traits.multiprocessors, most_items));
  run<<<blocks, tuning::hopper_attend_for<D>().threads(), bytes, on>>>(maps, task);
  return detail::launch_status();
}

/// The maps of K and, with Values, V.
template <class T, bool Values>
status encode_keys(kernel::attend_maps& maps, tensor_view<T const, device> const& k,
                   tensor_view<T const, device> const& v) noexcept {
  status s = encode_map(maps.k, k, tuning::hopper_keys);
  if (s.ok()) s = encode_map(maps.few_k, k, tuning::hopper_few_keys);
  if constexpr (Values) {
    if (s.ok()) s = encode_map(maps.v, v, tuning::hopper_keys);
    if (s.ok()) s = encode_map(maps.few_v, v, tuning::hopper_few_keys);
  }
  return s;
}

/// Attends for all rows in order.
template <class T, int D, bool Values>
status attend_in_order(collective::attend_task<T>& task, cudaStream_t on) noexcept {
  attention_shape const& shape = task.call.shape;
  constexpr tuning::hopper_attend tune = tuning::hopper_attend_for<D>();
  kernel::attend_maps maps = {};
  status s = encode_map(maps.q, task.call.q, tune.rows());
  if constexpr (Values) {
    if (s.ok()) s = encode_map(maps.out, task.call.out, tune.rows());
  }
  if (s.ok()) s = encode_keys<T, Values>(maps, task.call.k, task.call.v);
  if (!s.ok()) return s;
  // Heads whose keys and values fit L2 run together; a window alone always fits.
  std::int64_t const bytes = std::int64_t{4} * larger(1, shape.kv_tokens) * shape.dim;
  std::int64_t const fit = (std::int64_t{tuning::hopper_l2_megabytes} << 20) / bytes;
  bool const windows = task.keys == collective::attend_keys::near;
  task.section = shape.group() *
                 (windows ? 1 : static_cast<int>(clamped<std::int64_t>(fit, 1, shape.kv_heads)));
  std::int64_t const items =
      std::int64_t{shape.batch} * shape.q_heads * ceil_div(shape.q_tokens, tune.rows());
  s = detail::device_status(cudaMemsetAsync(task.counter, 0, sizeof(int), on));
  if (!s.ok()) return s;
  return launch_attend<T, D, false, Values>(task, maps, items, on);
}

/// Every row sees its near field: overwrites out and lse; without Values lse only.
template <class T, int D, bool Values>
status hopper_near(attention_call<T, device> const& call, near_field const& near, mask limit,
                   lse_view<T, device> const& lse, hopper_memory<T> const& memory,
                   cudaStream_t on) noexcept {
  collective::attend_task<T> task{call,          lse, near, limit, collective::attend_keys::near,
                                  memory.counter};
  return attend_in_order<T, D, Values>(task, on);
}

/// Every row sees all that the mask allows: overwrites out and lse; without Values lse only.
template <class T, int D, bool Values>
status hopper_dense(attention_call<T, device> const& call, mask limit,
                    lse_view<T, device> const& lse, hopper_memory<T> const& memory,
                    cudaStream_t on) noexcept {
  collective::attend_task<T> task{call,          lse, {}, limit, collective::attend_keys::visible,
                                  memory.counter};
  return attend_in_order<T, D, Values>(task, on);
}

/// Sorts the rows of one class into tiles, for a task on gathered rows.
template <class T>
status gather_class(collective::attend_task<T>& task, plan_view<device> const& plan, row_class kind,
                    hopper_memory<T> const& memory, cudaStream_t on,
                    int const* some = nullptr) noexcept {
  task.counter = memory.schedule.next;
  task.schedule = memory.schedule;
  task.plan = plan;
  return gather_rows(task.call, task.near, task.limit, plan,
                     kernel::class_mask{1u << static_cast<unsigned>(kind)}, memory.schedule, on,
                     some);
}

/// After near: active rows also see their list; completes their out and lse. Lists are packed for
/// a group of chunks at a time. Without Values lse only.
template <class T, int D, bool Values>
status hopper_far(attention_call<T, device> const& call, near_field const& near, mask limit,
                  plan_view<device> const& plan, lse_view<T, device> const& lse,
                  hopper_memory<T> const& memory, cudaStream_t on) noexcept {
  collective::attend_task<T> task{call, lse, near, limit, collective::attend_keys::list};
  if (call.shape.kv_tokens == 0 || plan.capacity == 0) return {};
  status const gathered = gather_class(task, plan, row_class::active, memory, on);
  if (!gathered.ok()) return gathered;
  auto packing = call;
  if constexpr (!Values) packing.v = call.k;  // not read, but packed with K
  return memory.for_each_group(
      call, limit, plan.capacity, [&](chunk_range range, packed_kv<T> const& packed) {
        task.range = range;
        task.rows_per_list = packed.rows_per_list;
        int const extents[4] = {1, range.lists(call.shape), packed.rows_per_list, call.shape.dim};
        kernel::attend_maps maps = {};
        status s = encode_keys<T, Values>(maps, {packed.k, extents}, {packed.v, extents});
        if (s.ok()) s = pack_lists<T, D>(packing, plan, near, range, packed, on);
        if (s.ok() && range.first > 0) {  // the group before took items, too
          s = detail::device_status(cudaMemsetAsync(task.counter, 0, sizeof(int), on));
        }
        if (s.ok()) {
          s = launch_attend<T, D, true, Values>(task, maps, memory.schedule.most_tiles, on);
        }
        return s;
      });
}

/// Every row of the task's schedule sees all that the mask allows: overwrites out and lse; without
/// Values lse only. Where rows are few, their keys are split among blocks.
template <class T, int D, bool Values>
status attend_gathered(collective::attend_task<T>& task, hopper_memory<T> const& memory,
                       cudaStream_t on) noexcept {
  device_traits traits;
  kernel::attend_maps maps = {};
  status s = read_device(traits);
  if (s.ok()) s = encode_keys<T, Values>(maps, task.call.k, task.call.v);
  if (!s.ok() || task.schedule.most_tiles == 0) return s;
  // Ten items a multiprocessor: with fewer tiles their keys are split. Below so many keys an item
  // costs no less, and two items a multiprocessor are enough.
  constexpr int least_keys = tuning::hopper_keys * (Values ? 8 : 16);
  attention_shape const& shape = task.call.shape;
  task.splits = memory.splits(shape.dim, D, 10 * traits.multiprocessors,
                              shape.kv_tokens / least_keys, 2 * traits.multiprocessors);
  s = launch_attend<T, D, true, Values>(task, maps, traits.multiprocessors, on);
  if (!s.ok()) return s;
  kernel::merge_splits<T, D, Values>
      <<<8 * traits.multiprocessors, kernel::merge_threads, 0, on>>>(task);
  return detail::launch_status();
}

/// Rescued rows see all that the mask allows: overwrites their out and lse; without Values lse
/// only.
template <class T, int D, bool Values>
status hopper_rescued(attention_call<T, device> const& call, near_field const& near, mask limit,
                      plan_view<device> const& plan, lse_view<T, device> const& lse,
                      hopper_memory<T> const& memory, cudaStream_t on,
                      int const* some = nullptr) noexcept {
  collective::attend_task<T> task{call, lse, near, limit, collective::attend_keys::visible};
  status const s = gather_class(task, plan, row_class::rescued, memory, on, some);
  return s.ok() ? attend_gathered<T, D, Values>(task, memory, on) : s;
}

}  // namespace omnisparse::launch
