/// @file
/// Which keys each list keeps: the host side.
#pragma once

#include <omnisparse/backend/cuda/backend.cuh>
#include <omnisparse/backend/cuda/chunk_range.cuh>
#include <omnisparse/backend/cuda/kernel/select.cuh>
#include <omnisparse/core/call.hpp>

#include <concepts>

namespace omnisparse::launch {

/// Memory of `select`.
struct select_memory {
  kernel::reach_view reached;  ///< [lists of the range]

  static select_memory take(detail::arena& arena, attention_shape const& shape,
                            chunk_range const& range) noexcept {
    auto const lists = static_cast<std::size_t>(range.lists(shape));
    select_memory m;
    m.reached.reach = arena.take<int>(lists);
    m.reached.concentration = arena.take<double>(lists);
    return m;
  }
};

/// CTAs for one list: a cluster that gives each about 4K keys, where the function's code knows
/// clusters.
template <class... P>
status team_size(void (*function)(P...), int kv_tokens, int& size) noexcept {
  cudaFuncAttributes attributes = {};
  cudaError_t const error = cudaFuncGetAttributes(&attributes, function);
  size = 1;
  if (error != cudaSuccess) return detail::device_status(error);
  if (attributes.ptxVersion >= 90) {
    while (size < collective::team::most && size * 4096 < kv_tokens) size *= 2;
  }
  return {};
}

/// Launches a team of CTAs for each list, each with bytes_of(CTAs) of dynamic shared memory.
template <class... P, class Bytes, class... A>
status launch_teams(void (*function)(P...), int lists, int kv_tokens, Bytes const& bytes_of,
                    cudaStream_t on, A const&... arguments) noexcept {
  int size = 1;
  if (status const bad = team_size(function, kv_tokens, size); !bad.ok()) return bad;
  int const bytes = bytes_of(size);
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(lists * size));
  config.blockDim = dim3(collective::team::threads);
  config.dynamicSmemBytes = static_cast<std::size_t>(bytes);
  config.stream = on;
  config.attrs = &cluster;
  config.numAttrs = size > 1 ? 1 : 0;
  cudaError_t error = cudaSuccess;
  if (bytes > 0) {
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  }
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, function, arguments...);
  return detail::device_status(error);
}

/// Writes kept, kept_counts and recalls of the lists of `range` into the plan, from their scores:
/// the best keys by score (ties to the lowest index, NaN last), as many as the budget asks for, and
/// every text key. Asynchronous on `on`. One launch; two where the budget looks at reaches, whose
/// masses are summed in fixed point: the same bits always, on any number of CTAs.
template <class T, class Policies>
status select(attention_call<T, device> const& call, Policies const& p,
              plan_view<device> const& plan, chunk_range const& range, scores_view const& scores,
              select_memory const& m, cudaStream_t on) noexcept {
  using budget_sees = observed<decltype(p.budget)>;
  constexpr bool reaching = !std::same_as<budget_sees, observation::nothing>;
  constexpr bool comparing = std::same_as<budget_sees, observation::all_reaches>;
  constexpr bool probed =
      reaching || std::same_as<observed<decltype(p.scorer)>, observation::probe_mass>;
  int const lists = range.lists(call.shape), tokens = call.shape.kv_tokens;
  if (lists == 0) return {};
  collective::list_frame const frame{call.shape,      call.in, p.near, p.limit,
                                     plan.chunk_rows, range,   scores};
  if constexpr (reaching) {
    status const bad = launch_teams(
        kernel::measure_reach<comparing>, lists, tokens, [](int) { return kernel::reach_bytes; },
        on, frame, detail::recall_of(p.budget), detail::flatness_of(p.budget), m.reached.reach,
        m.reached.concentration);
    if (!bad.ok()) return bad;
  }
  using budget = std::remove_cvref_t<decltype(p.budget)>;
  return launch_teams(
      kernel::select_lists<budget, probed>, lists, tokens,
      [&](int ctas) { return kernel::tile_bytes(tokens, ctas); }, on, frame, p.budget, m.reached,
      plan);
}

}  // namespace omnisparse::launch
