/// @file
/// Planning on the CPU: the observations that the chosen policies ask for, and their decisions.
#pragma once

#include <omnisparse/backend/cpu/moments.hpp>
#include <omnisparse/backend/cpu/probe.hpp>
#include <omnisparse/backend/cpu/select.hpp>
#include <omnisparse/rescue/none.hpp>

#include <cmath>

namespace omnisparse::cpu {

/// What a set of policies needs to look at, known at compile time.
template <class P>
struct wants {
  using selector_sees = observed<decltype(P::selector)>;
  using rescue_sees = observed<decltype(P::rescue)>;
  static constexpr bool contrast = std::same_as<selector_sees, observation::sink_and_mean>;
  static constexpr bool far = std::same_as<selector_sees, observation::near_and_far>;
  static constexpr bool coverage = std::same_as<rescue_sees, observation::coverage>;
};

/// The memory of planning, beside attend_memory.
template <class A>
struct plan_memory {
  probe_memory<A> probe;
  block_moments<A> moments;
  tensor_view<A, host, 3> lse;  ///< [batch, q_heads, q_tokens], of near fields or what rows see
  double* sums = nullptr; ///< [threads, 2 dim], running sums of keys
  std::byte* far = nullptr;
  std::size_t far_bytes = 0;
  int block = 64;  ///< the smaller block of both estimates

  template <class Arena, class Policies>
  static plan_memory take(Arena& arena, attention_shape const& shape, Policies const& p,
                          int threads) noexcept {
    constexpr bool estimates = wants<Policies>::far || wants<Policies>::coverage;
    auto const threads_n = static_cast<std::size_t>(threads);
    plan_memory m;
    m.block = smaller(detail::estimate_of(p.selector).block, detail::estimate_of(p.rescue).block);
    m.probe = probe_memory<A>::take(arena, shape,
                                    p.rows.rows > 0 ? smaller(p.rows.rows, larger(1, shape.q_tokens))
                                                    : larger(1, shape.q_tokens));
    if constexpr (wants<Policies>::contrast) {
      m.sums = arena.template take<double>(threads_n * 2 * static_cast<std::size_t>(shape.dim));
    }
    if constexpr (estimates) {
      m.moments = block_moments<A>::take(arena, shape.kv_tokens, m.block, shape.dim);
      m.lse = {nullptr, {shape.batch, shape.q_heads, shape.q_tokens}};
      m.lse.data = arena.template take<A>(static_cast<std::size_t>(m.lse.size()));
      detail::arena one;
      far_scratch<A>::take(one, shape.kv_tokens, m.block, shape.dim);
      m.far_bytes = round_up(one.needed(), std::size_t{256});
      m.far = arena.template take<std::byte>(m.far_bytes * threads_n);
    }
    return m;
  }

  far_scratch<A> far_of(int thread, attention_shape const& shape) const noexcept {
    detail::arena piece(far + far_bytes * static_cast<std::size_t>(thread), far_bytes);
    return far_scratch<A>::take(piece, shape.kv_tokens, block, shape.dim);
  }
};

/// Is the row of a text segment, hence never lazy?
template <class T>
bool is_text_row(attention_call<T, host> const& call, int b, int position) noexcept {
  return position >= 0 && !call.in.segments.is_null() &&
         call.in.segments(b, position) == segment::text;
}

/// Classes of all rows by a selector that observes nothing or the sink contrast.
template <class T, class Policies>
void select_rows(attention_call<T, host> const& call, Policies const& p,
                 plan_view<host> const& plan, int threads, double* sums) noexcept {
  attention_shape const& shape = call.shape;
  int const dim = shape.dim, group = shape.group();
  long long const slots = static_cast<long long>(shape.batch) * shape.kv_heads;
  parallel_for(threads, slots, [&](long long slot, int thread) {
    int const b = static_cast<int>(slot / shape.kv_heads);
    int const g = static_cast<int>(slot % shape.kv_heads);
    sequence_extent const extent = extent_of(shape, call.in, b);
    int const first = detail::first_of(p.selector);
    double* const sink = sums + std::ptrdiff_t{thread} * 2 * dim;
    double* const pool = sink + dim;
    int taken = 0;  // keys [0, taken) are summed up, the first ones in sink, the others in pool
    auto const take_keys = [&](int end) {
      for (; taken < end; ++taken) {
        T const* const k = call.k.at(b, g, taken);
        double* const sum = taken < first ? sink : pool;
        for (int d = 0; d < dim; ++d) sum[d] += static_cast<double>(k[d]);
      }
    };
    if constexpr (wants<Policies>::contrast) {
      std::fill_n(sink, 2 * dim, 0.0);
      if (detail::range_of(p.selector) == pool_range::whole_call) take_keys(extent.kv_tokens);
    }
    for (int i = 0; i < shape.q_tokens; ++i) {
      int const position = extent.position(i);
      if constexpr (wants<Policies>::contrast) take_keys(smaller(position + 1, extent.kv_tokens));
      for (int h = g * group; h < (g + 1) * group; ++h) {
        row_class& kind = plan.rows_at(b, h)[i];
        kind = row_class::lazy;
        if (i >= extent.q_tokens) continue;
        bool keeps = false;
        if constexpr (wants<Policies>::contrast) {
          double on_sink = 0, on_pool = 0;
          T const* const q = call.q.at(b, h, i);
          for (int d = 0; d < dim; ++d) {
            on_sink += static_cast<double>(q[d]) * sink[d];
            on_pool += static_cast<double>(q[d]) * pool[d];
          }
          double const root = std::sqrt(static_cast<double>(dim));
          int const sinks = smaller(first, taken), pooled = taken - sinks;
          on_sink /= root * larger(1, sinks);
          on_pool /= root * larger(1, pooled);
          double const share = pooled > 0 ? 1.0 / (1.0 + std::exp(on_sink - on_pool)) : 0.0;
          keeps = p.selector.keeps({static_cast<float>(on_sink), static_cast<float>(on_pool),
                                    static_cast<float>(share)}, {position, h});
        } else if constexpr (!wants<Policies>::far) {
          keeps = p.selector.keeps({}, {position, h});
        }
        if (keeps || is_text_row(call, b, position)) kind = row_class::active;
      }
    }
  });
}

/// Estimates what lies beyond the near field of each row in `rows` of a unit and calls
/// decide(b, h, i, lse_far). Rows ascend by position.
template <class T, class Decide>
void estimate_rows(attention_call<T, host> const& call, near_field const& near, mask limit,
                   far_estimate const& estimate, row_unit const& u, int const* rows, int count,
                   attend_memory<accumulator_t<T>> const& m,
                   plan_memory<accumulator_t<T>> const& pm, Decide const& decide) noexcept {
  attention_shape const& shape = call.shape;
  sequence_extent const extent = extent_of(shape, call.in, u.b);
  int const group = shape.group(), size = estimate.block;
  auto const head = [&](int n) { return u.g * group + rows[n] % group; };
  parallel_for(m.threads, ceil_div(count, tile_rows), [&](long long tile, int thread) {
    auto const s = m.scratch_of(thread, shape.dim);
    auto const f = pm.far_of(thread, shape);
    int const end = smaller(count, static_cast<int>(tile + 1) * tile_rows);
    key_range windows[tile_rows];
    for (int first = static_cast<int>(tile) * tile_rows, last = first; first < end; first = last) {
      for (; last < end; ++last) {  // rows that share their whole blocks
        windows[last - first] = near.window_of(extent.position(rows[last] / group),
                                               extent.kv_tokens, limit);
        key_range const w = windows[last - first];
        if (w.begin / size != windows[0].begin / size ||
            (limit == mask::full && ceil_div(w.end, size) != ceil_div(windows[0].end, size))) {
          break;
        }
      }
      estimate_far<T>([&](int r) { return call.q.at(u.b, head(first + r), rows[first + r] / group); },
                      windows, last - first, near, limit, extent.kv_tokens, shape.dim, estimate,
                      pm.moments, s, f, [&](int r, accumulator_t<T> lse) {
                        decide(u.b, head(first + r), rows[first + r] / group, lse);
                      });
    }
  });
}

/// The share of `part` in part + other, log-masses in nats; 0 where the part is empty.
template <class A>
float mass_share(A part, A other) noexcept {
  if (part == empty_lse<A>()) return 0.f;
  return static_cast<float>(A(1) / (A(1) + std::exp(other - part)));
}

/// Classes of all rows by a selector that observes near_and_far. `pm.lse` becomes that of the near
/// fields.
template <class T, class Policies>
void select_rows_by_far_mass(attention_call<T, host> const& call, Policies const& p,
                             plan_view<host> const& plan, attend_memory<accumulator_t<T>>& m,
                             plan_memory<accumulator_t<T>>& pm) noexcept {
  using A = accumulator_t<T>;
  attention_shape const& shape = call.shape;
  measure_rows(call, {.all = row_class::lazy}, p.near, p.limit, m, pm.lse);
  far_estimate const estimate = detail::estimate_of(p.selector);
  for (int n = 0; n < m.units.count; ++n) {
    row_unit const& u = m.units.units[n];
    sequence_extent const extent = extent_of(shape, call.in, u.b);
    measure_blocks(call, u.b, u.g, {smaller(p.near.sinks, extent.kv_tokens), extent.kv_tokens},
                   estimate, m.threads, pm.moments);
    estimate_rows(call, p.near, p.limit, estimate, u, m.units.rows_of(shape, u), u.counts[0], m, pm,
                  [&](int b, int h, int i, A far) {
                    A const near = pm.lse(b, h, i);
                    int const position = extent.position(i);
                    bool const keeps = p.selector.keeps(
                        {static_cast<float>(near), static_cast<float>(far), mass_share(far, near)},
                        {position, h});
                    plan.rows_at(b, h)[i] = keeps || is_text_row(call, b, position)
                                                ? row_class::active
                                                : row_class::lazy;
                  });
  }
}

/// Turns active rows that the rescue policy names into rescued ones. `pm.lse` holds what each active
/// row sees; the units in `m` are those of the plan, as the pass that made lse left them.
template <class T, class Policies>
void rescue_rows(attention_call<T, host> const& call, Policies const& p,
                 plan_view<host> const& plan, attend_memory<accumulator_t<T>>& m,
                 plan_memory<accumulator_t<T>>& pm) noexcept {
  using A = accumulator_t<T>;
  attention_shape const& shape = call.shape;
  far_estimate const estimate = detail::estimate_of(p.rescue);
  for (int n = 0; n < m.units.count; ++n) {
    row_unit const& u = m.units.units[n];
    int const active = u.counts[static_cast<int>(row_class::active)];
    if (active == 0) continue;
    sequence_extent const extent = extent_of(shape, call.in, u.b);
    int const* const rows = m.units.rows_of(shape, u) + u.counts[0];
    // Under a causal mask nothing behind the chunk's last row matters.
    int const last = extent.position(smaller(extent.q_tokens, (u.c + 1) * plan.chunk_rows) - 1);
    int const tokens =
        p.limit == mask::causal ? smaller(extent.kv_tokens, round_up(last + 1, estimate.block))
                                : extent.kv_tokens;
    measure_blocks(call, u.b, u.g,
                   {smaller(p.near.sinks, extent.kv_tokens), tokens,
                    plan.kept_at(u.b, u.c, u.g) + u.list_begin, u.list_count},
                   estimate, m.threads, pm.moments);
    estimate_rows(call, p.near, p.limit, estimate, u, rows, active, m, pm,
                  [&](int b, int h, int i, A left_out) {
                    float const share = left_out == empty_lse<A>()
                                            ? 1.f
                                            : mass_share(pm.lse(b, h, i), left_out);
                    if (p.rescue.rescues({share}, {extent.position(i), h})) {
                      plan.rows_at(b, h)[i] = row_class::rescued;
                    }
                  });
  }
}

/// The first half of planning: row classes without rescue, and the kept lists. Keys are packed.
template <class T, class Policies>
void choose(attention_call<T, host> const& call, Policies const& p, plan_view<host> const& plan,
            attend_memory<accumulator_t<T>>& m, plan_memory<accumulator_t<T>>& pm) noexcept {
  if constexpr (wants<Policies>::far) {
    for (std::int64_t n = 0; n < plan.row_count(); ++n) plan.rows[n] = row_class::lazy;
    select_rows_by_far_mass(call, p, plan, m, pm);
  } else {
    select_rows(call, p, plan, m.threads, pm.sums);
  }
  for (int b = 0; b < call.shape.batch; ++b) {
    sequence_extent const extent = extent_of(call.shape, call.in, b);
    for (int c = 0; c < plan.chunks(); ++c) {
      select_chunk(call, p, plan, b, c, extent, m, pm.probe);
    }
  }
}

/// The second half: rescue. `seen` tells whether pm.lse already holds what active rows see, as it
/// does after an attention pass that kept it.
template <class T, class Policies>
void rescue(attention_call<T, host> const& call, Policies const& p, plan_view<host> const& plan,
            attend_memory<accumulator_t<T>>& m, plan_memory<accumulator_t<T>>& pm,
            bool seen) noexcept {
  attention_shape const& shape = call.shape;
  if constexpr (wants<Policies>::coverage) {
    if (!seen) {
      row_choice const active{.plan = plan, .classes = classes_of(row_class::active)};
      measure_rows(call, active, p.near, p.limit, m, pm.lse);
    }
    rescue_rows(call, p, plan, m, pm);
  } else if constexpr (!std::same_as<decltype(p.rescue), rescue::none>) {
    for (int b = 0; b < shape.batch; ++b) {
      sequence_extent const extent = extent_of(shape, call.in, b);
      for (int h = 0; h < shape.q_heads; ++h) {
        for (int i = 0; i < extent.q_tokens; ++i) {
          row_class& kind = plan.rows_at(b, h)[i];
          if (kind == row_class::active && p.rescue.rescues({}, {extent.position(i), h})) {
            kind = row_class::rescued;
          }
        }
      }
    }
  }
}

}  // namespace omnisparse::cpu
