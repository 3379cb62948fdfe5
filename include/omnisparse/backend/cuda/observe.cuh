/// @file
/// Observing on the GPU: the classes of rows, and what probe rows tell of the keys.
#pragma once

#include <omnisparse/backend/cuda/backend.cuh>
#include <omnisparse/backend/cuda/chunk_range.cuh>
#include <omnisparse/backend/cuda/kernel/contrast.cuh>
#include <omnisparse/backend/cuda/kernel/far_mass.cuh>
#include <omnisparse/backend/cuda/kernel/moments.cuh>
#include <omnisparse/backend/cuda/kernel/probe.cuh>

#include <concepts>
#include <type_traits>

namespace omnisparse::launch {

/// Memory of all observations. They are made one after the other and share it.
template <class Policies>
struct observe_memory {
  kernel::key_sums sums;
  kernel::block_moments all;       ///< of all keys, one list a (batch, KV head)
  kernel::block_moments left_out;  ///< of what lists left out
  kernel::probe_rows probes;
  int rescue_chunks = 1;  ///< chunks whose lists are measured at a time

  /// Moments of lists that are measured together take at most this much, or those of one chunk.
  static constexpr std::int64_t most_moment_bytes = std::int64_t{64} << 20;

  /// `range.count` is the most chunks that are probed at a time.
  static observe_memory take(detail::arena& arena, attention_shape const& shape, Policies const& p,
                             chunk_range const& range) noexcept {
    using wants = detail::wants<Policies>;
    detail::arena const start = arena;
    int const most_rows = larger(1, shape.q_tokens);
    int const chunk_rows = p.rows.rows > 0 ? smaller(p.rows.rows, most_rows) : most_rows;
    observe_memory m;
    auto const apart = [&](auto const& take_part) {
      detail::arena part = start;
      take_part(part);
      if (part.used() > arena.used()) arena = part;
    };
    if constexpr (wants::contrast) {
      apart([&](detail::arena& part) { m.sums = kernel::key_sums::take(part, shape); });
    }
    if constexpr (wants::far) {
      apart([&](detail::arena& part) {
        auto const layout =
            kernel::pyramid_layout::of(shape.kv_tokens, detail::estimate_of(p.selector).block);
        m.all = kernel::block_moments::take(part, layout, shape.batch * shape.kv_heads, shape.dim);
      });
    }
    if constexpr (wants::coverage) {
      apart([&](detail::arena& part) {
        auto const layout =
            kernel::pyramid_layout::of(shape.kv_tokens, detail::estimate_of(p.rescue).block);
        std::int64_t const chunk = larger<std::int64_t>(
            1, kernel::block_moments::bytes(layout, shape.dim) * shape.batch * shape.kv_heads);
        m.rescue_chunks = static_cast<int>(clamped<std::int64_t>(
            most_moment_bytes / chunk, 1, larger(1, ceil_div(shape.q_tokens, chunk_rows))));
        m.left_out = kernel::block_moments::take(
            part, layout, m.rescue_chunks * shape.batch * shape.kv_heads, shape.dim);
      });
    }
    if constexpr (wants::probes) {
      apart([&](detail::arena& part) {
        m.probes = kernel::probe_rows::take(part, shape, chunk_rows, range);
      });
    }
    return m;
  }
};

/// Calls act(std::integral_constant<int, D>) for the kernels of a shape's heads: 64, 128 or 256.
template <class Act>
status with_dim(attention_shape const& shape, Act const& act) noexcept {
  switch (tuning::kernel_dim(shape.dim)) {
    case 64:
      return act(std::integral_constant<int, 64>{});
    case 128:
      return act(std::integral_constant<int, 128>{});
    default:
      return act(std::integral_constant<int, 256>{});
  }
}

/// Launches a kernel of a one-dimensional grid, with more shared memory than usual if need be.
template <class... Parameters, class... Arguments>
status start(void (*kernel)(Parameters...), std::int64_t blocks, int threads, int bytes,
             cudaStream_t on, Arguments const&... arguments) noexcept {
  if (blocks == 0) return {};
  if (bytes > 48 << 10) {
    cudaError_t const error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return detail::device_status(error);
  }
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
           static_cast<std::size_t>(bytes), on>>>(arguments...);
  return detail::launch_status();
}

/// Block moments of the lists of `from`, all levels, for an estimate.
template <int D, class T>
status measure_moments(attention_call<T, device> const& call, kernel::moment_source const& from,
                       kernel::block_moments m, far_estimate const& estimate,
                       cudaStream_t on) noexcept {
  m.weight = estimate.variance_weight * 0.5f *
             collective::logit_scale::of(call.scale, call.shape.dim).nats;
  constexpr int threads = kernel::moment_threads, together = 4;  // levels pooled by one launch
  int const lists = from.range.lists(call.shape);
  std::int64_t const blocks =
      std::int64_t{lists} * ceil_div(m.layout.blocks(0), kernel::moment_warps);
  status s = start(kernel::measure_blocks<T, D, inputs<device>>, blocks, threads, 0, on, call.shape,
                   call.in, call.k, from, m);
  for (int level = 1; s.ok() && level < m.layout.levels; level += together) {
    int const to = smaller(level + together, m.layout.levels);
    s = start(kernel::pool_blocks<T, D>, std::int64_t{lists} * m.layout.blocks(to - 1),
              kernel::pool_threads, 0, on, m, lists, level, to);
  }
  if (s.ok() && estimate.by == far_estimate::kind::upper_bound) {
    s = start(kernel::measure_radii<T, D, inputs<device>>, blocks, threads, 0, on, call.shape,
              call.in, call.k, from, m);
  }
  return s;
}

/// Classes of the rows of the lists of `from` by the log-sum-exp that their moments stand for.
template <int D, class T, class Decide>
status decide_by_far(attention_call<T, device> const& call, kernel::moment_source const& from,
                     kernel::block_moments const& m, far_estimate const& estimate,
                     lse_view<T, device> const& seen, Decide const& decide,
                     cudaStream_t on) noexcept {
  attention_shape const& shape = call.shape;
  // About 512 rows share a list of columns, and no more than begin in one block.
  int const most = clamped(512 / larger(1, shape.group()), 1, estimate.block);
  int span = 1;
  while (2 * span <= most) span *= 2;
  int const parts = ceil_div(smaller(from.plan.chunk_rows, shape.q_tokens), span) + 1;
  return start(kernel::decide_by_far<T, D, Decide, inputs<device>>,
               std::int64_t{from.range.lists(shape)} * parts, kernel::far_threads,
               static_cast<int>(sizeof(kernel::far_shared<T, D>)), on, shape, call.in, call.q, from,
               m, estimate, span, parts, seen, decide,
               collective::logit_scale::of(call.scale, shape.dim));
}

/// Row classes by a selector that observes nothing or sink_and_mean: lazy or active. Text rows are
/// active, rows that do not exist lazy.
template <class T, class Policies>
status classify(attention_call<T, device> const& call, Policies const& p,
                plan_view<device> const& plan, observe_memory<Policies> const& m,
                cudaStream_t on) noexcept {
  attention_shape const& shape = call.shape;
  using selector = decltype(p.selector);
  if constexpr (!detail::wants<Policies>::contrast) {
    return start(kernel::classify_by_position<std::remove_const_t<selector>, inputs<device>>,
                 ceil_div<std::int64_t>(plan.row_count(), 256), 256, 0, on, shape, call.in, plan,
                 p.selector);
  } else {
    return with_dim(shape, [&](auto dim) {
      constexpr int D = decltype(dim)::value;
      std::int64_t const slots = std::int64_t{shape.batch} * shape.kv_heads;
      pool_range const range = detail::range_of(p.selector);
      int const rows = kernel::contrast_rows(range);
      int const means = range == pool_range::past ? rows : 1;
      status s = start(kernel::sum_blocks<T, D, inputs<device>>,
                       slots * ceil_div(m.sums.blocks + 1, kernel::sum_threads / 32),
                       kernel::sum_threads, 0, on, shape, call.in, call.k, m.sums);
      if (s.ok()) s = start(kernel::scan_sums<D>, slots * (D / 32), 1024, 0, on, m.sums);
      if (s.ok()) {
        s = start(kernel::classify_by_contrast<T, D, std::remove_const_t<selector>, inputs<device>>,
                  slots * ceil_div(shape.q_tokens, rows), kernel::contrast_threads,
                  means * 2 * D * static_cast<int>(sizeof(float)), on, shape, call.in, call.q,
                  call.k, plan, m.sums, p.selector,
                  collective::logit_scale::of(call.scale, shape.dim));
      }
      return s;
    });
  }
}

/// Row classes by a selector that observes near_and_far; `near_lse` as the near pass left it.
template <class T, class Policies>
status classify_far(attention_call<T, device> const& call, Policies const& p,
                    lse_view<T, device> const& near_lse, plan_view<device> const& plan,
                    observe_memory<Policies> const& m, cudaStream_t on) noexcept {
  using decision = kernel::far_decision<std::remove_cvref_t<decltype(p.selector)>>;
  far_estimate const estimate = detail::estimate_of(p.selector);
  kernel::moment_source from{plan, {0, 1}, p.near, p.limit};
  from.plan.chunk_rows = larger(1, call.shape.q_tokens);
  from.plan.kept = nullptr;
  return with_dim(call.shape, [&](auto dim) {
    constexpr int D = decltype(dim)::value;
    status s = measure_moments<D>(call, from, m.all, estimate, on);
    if (s.ok()) {
      s = decide_by_far<D>(call, from, m.all, estimate, near_lse, decision{p.selector}, on);
    }
    return s;
  });
}

/// Finds the probe rows of the chunks of `range`, and cuts them into the tiles of a schedule if it
/// has rows.
template <class T, class Policies>
status find_probes(attention_call<T, device> const& call, Policies const& p, chunk_range range,
                   kernel::row_schedule const& schedule, scores_view const& scores,
                   kernel::probe_rows const& probes, cudaStream_t on) noexcept {
  using scorer = std::remove_cvref_t<decltype(p.scorer)>;
  std::int64_t const units = std::int64_t{call.shape.batch} * range.count;
  status const s =
      start(kernel::mark_probes<scorer, inputs<device>>, units * ceil_div(probes.words(), 32), 1024,
            0, on, call.shape, call.in, range, p.limit, probes, schedule, p.scorer);
  return s.ok() ? start(kernel::list_probes<inputs<device>>, units, 1024, 0, on, call.shape,
                        call.in, range, p.near, p.limit, probes, schedule, scores)
                : s;
}

/// Probes the chunks of `range`: masses, scores and pairs of their lists. Row classes do not
/// matter.
template <class T, class Policies>
status probe(attention_call<T, device> const& call, Policies const& p,
             plan_view<device> const& plan, chunk_range range, scores_view const& scores,
             observe_memory<Policies> const& m, cudaStream_t on) noexcept {
  attention_shape const& shape = call.shape;
  using scorer = std::remove_cvref_t<decltype(p.scorer)>;
  static_cast<void>(plan);
  if constexpr (!detail::wants<Policies>::probes) {
    return start(kernel::score_by_position<scorer>,
                 std::int64_t{range.lists(shape)} * (scores.keys / 128), 128, 0, on, scores,
                 p.scorer);
  } else {
    return with_dim(shape, [&](auto dim) {
      constexpr int D = decltype(dim)::value;
      using tile = kernel::probe_tile<T, D>;
      // More blocks than a GPU runs at once; each takes every so-many-th item.
      constexpr std::int64_t most_blocks = 8192;
      auto const scale = collective::logit_scale::of(call.scale, shape.dim);
      std::int64_t const lists = range.lists(shape);
      std::int64_t const tiles =
          ceil_div<std::int64_t>(std::int64_t{m.probes.chunk_rows} * shape.group(), tile::rows);
      status s = find_probes(call, p, range, kernel::row_schedule{}, scores, m.probes, on);
      if (s.ok()) {
        s = start(kernel::sum_probe_rows<T, D, inputs<device>>,
                  smaller(most_blocks, lists * tiles * m.probes.most_splits), kernel::probe_threads,
                  tile::bytes, on, shape, call.in, call.q, call.k, range, p.limit, m.probes, scale);
      }
      if (s.ok()) {
        s = start(kernel::merge_probe_rows, lists * m.probes.merge_blocks, 256, 0, on, shape, range,
                  m.probes);
      }
      if (s.ok()) {
        s = start(kernel::score_keys<T, D, scorer, inputs<device>>,
                  lists * ceil_div(scores.keys, tile::rows), kernel::probe_threads, tile::bytes, on,
                  shape, call.in, call.q, call.k, p.near, p.limit, range, m.probes, scores,
                  p.scorer, scale);
      }
      return s;
    });
  }
}

/// Active rows become rescued where the policy says so: by the coverage estimated from what their
/// list left out, or by position alone. `seen_lse` is that of near field and list. By coverage,
/// `some` [1], where not null, becomes 1 if any row is rescued.
template <class T, class Policies>
status rescue(attention_call<T, device> const& call, Policies const& p,
              lse_view<T, device> const& seen_lse, plan_view<device> const& plan,
              observe_memory<Policies> const& m, cudaStream_t on, int* some = nullptr) noexcept {
  attention_shape const& shape = call.shape;
  using policy = std::remove_cvref_t<decltype(p.rescue)>;
  if constexpr (!detail::wants<Policies>::coverage) {
    return start(kernel::rescue_by_position<policy, inputs<device>>,
                 ceil_div<std::int64_t>(plan.row_count(), 256), 256, 0, on, shape, call.in, plan,
                 p.rescue);
  } else {
    far_estimate const estimate = detail::estimate_of(p.rescue);
    return with_dim(shape, [&](auto dim) {
      constexpr int D = decltype(dim)::value;
      status s;
      for (int first = 0; s.ok() && first < plan.chunks(); first += m.rescue_chunks) {
        kernel::moment_source const from{
            plan, {first, smaller(m.rescue_chunks, plan.chunks() - first)}, p.near, p.limit};
        s = measure_moments<D>(call, from, m.left_out, estimate, on);
        if (s.ok()) {
          s = decide_by_far<D>(call, from, m.left_out, estimate, seen_lse,
                               kernel::coverage_decision<policy>{p.rescue, some}, on);
        }
      }
      return s;
    });
  }
}

}  // namespace omnisparse::launch
