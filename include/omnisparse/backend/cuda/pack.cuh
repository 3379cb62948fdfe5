/// @file
/// Packed lists: the kept rows of K and V, contiguous, so that tiles of them can be loaded.
#pragma once

#include <omnisparse/backend/cuda/backend.cuh>
#include <omnisparse/backend/cuda/kernel/pack.cuh>
#include <omnisparse/core/call.hpp>

#include <cstdint>

namespace omnisparse {

/// Packed rows of the lists of a chunk_range, each list from its first entry that is no sink.
template <class T>
struct packed_kv {
  T* k = nullptr;         ///< [lists, rows_per_list, dim], 16-byte aligned
  T* v = nullptr;         ///< as k
  int rows_per_list = 0;  ///< a multiple of 128 that no list of the plan exceeds

  /// Room for the lists of `range` with up to `capacity` entries each.
  static packed_kv take(detail::arena& arena, attention_shape const& shape,
                        chunk_range const& range, int capacity) noexcept {
    packed_kv p;
    p.rows_per_list = round_up(capacity, 128);
    auto const size = static_cast<std::size_t>(range.lists(shape)) *
                      static_cast<std::size_t>(p.rows_per_list) *
                      static_cast<std::size_t>(shape.dim);
    p.k = arena.take<T>(size);
    p.v = arena.take<T>(size);
    return p;
  }
};

namespace launch {

/// Can the rows of this view be copied 16 bytes at a time? Packing needs it of k and v.
template <class T>
bool has_aligned_rows(tensor_view<T, device> const& x) noexcept {
  auto const divides = [](std::int64_t elements) {
    return elements * std::int64_t{sizeof(T)} % 16 == 0;
  };
  return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && divides(x.stride(0)) &&
         divides(x.stride(1)) && divides(x.stride(2)) && x.stride(3) == 1;
}

/// Copies the listed rows of k and v into `packed`, for the lists of `range`; sinks are left out,
/// and zeros follow up to the next multiple of 128 rows. Entries outside [0, kv_tokens) count as
/// the nearest end, so a damaged plan reads no foreign memory. Both k and v must have aligned rows
/// (`has_aligned_rows`). Asynchronous on `on`.
template <class T, int D>
status pack_lists(attention_call<T, device> const& call, plan_view<device> const& plan,
                  near_field const& near, chunk_range const& range, packed_kv<T> const& packed,
                  cudaStream_t on) noexcept {
  constexpr int pieces = D * static_cast<int>(sizeof(T)) / 16;
  int const lists = range.lists(call.shape);
  if (lists == 0 || packed.rows_per_list == 0 || call.shape.kv_tokens == 0) return {};
  kernel::pack_task task;
  task.plan = plan;
  task.range = range;
  task.sinks = near.sinks;
  task.rows_per_list = packed.rows_per_list;
  task.pieces = call.shape.dim * static_cast<int>(sizeof(T)) / 16;
  // About 2048 CTAs in all keep every GPU busy; lists are often far from full.
  task.parts = clamped(ceil_div(2048, lists), 1, ceil_div(packed.rows_per_list, 64));
  auto const fill = [&](int kv, tensor_view<T const, device> const& x, T* target) {
    auto const in_pieces = [](std::int64_t elements) {
      return elements * std::int64_t{sizeof(T)} / 16;
    };
    task.source[kv] = reinterpret_cast<uint4 const*>(x.data);
    task.batch_stride[kv] = in_pieces(x.stride(0));
    task.head_stride[kv] = in_pieces(x.stride(1));
    task.token_stride[kv] = in_pieces(x.stride(2));
    task.target[kv] = reinterpret_cast<uint4*>(target);
  };
  fill(0, call.k, packed.k);
  fill(1, call.v, packed.v);
  kernel::pack_rows<pieces>
      <<<static_cast<unsigned>(lists * task.parts), kernel::pack_threads, 0, on>>>(task);
  return detail::launch_status();
}

}  // namespace launch
}  // namespace omnisparse
