/// @file
/// Probing by warpgroup products: the host side.
#pragma once

#include <omnisparse/backend/cuda/hopper.cuh>
#include <omnisparse/backend/cuda/kernel/hopper_probe.cuh>
#include <omnisparse/backend/cuda/observe.cuh>

namespace omnisparse::launch {

/// What `probe` does, on Hopper: the first pass attends with the probe rows, for their lse alone;
/// the second multiplies all keys with them. For scorers or budgets that look at probes.
template <int D, class T, class Policies>
status hopper_probe(attention_call<T, device> const& call, Policies const& p, chunk_range range,
                    scores_view const& scores, observe_memory<Policies> const& m,
                    hopper_memory<T> const& memory, cudaStream_t on) noexcept {
  static_assert(detail::wants<Policies>::probes);
  using scorer = std::remove_cvref_t<decltype(p.scorer)>;
  using block = kernel::probe_block<D>;
  attention_shape const& shape = call.shape;
  device_traits traits;
  status s = read_device(traits);
  if (!s.ok() || range.lists(shape) == 0) return s;
  s = find_probes(call, p, range, memory.schedule, scores, m.probes, on);

  lse_view<T, device> const lse{m.probes.lse, {shape.batch, shape.q_heads, shape.q_tokens}};
  collective::attend_task<T> rows{call, lse, p.near, p.limit, collective::attend_keys::visible};
  rows.counter = memory.schedule.next;
  rows.schedule = memory.schedule;
  if (s.ok() && shape.kv_tokens > 0) s = attend_gathered<T, D, false>(rows, memory, on);

  CUtensorMap keys = {};
  if (s.ok()) s = encode_map(keys, call.k, block::keys);
  kernel::probe_task<T, scorer> const sums{
      shape, call.in,  call.q, p.near,   p.limit,
      range, m.probes, scores, p.scorer, collective::logit_scale::of(call.scale, shape.dim)};
  if (s.ok()) {
    s = start(kernel::hopper_score_keys<T, D, scorer>, traits.multiprocessors, block::threads,
              static_cast<int>(sizeof(block)) + 1024, on, keys, sums);
  }
  return s;
}

}  // namespace omnisparse::launch
