/// @file
/// Planning on the CPU: the observations that the chosen policies ask for, and their decisions.
#pragma once

#include <omnisparse/backend/cpu/moments.hpp>
#include <omnisparse/backend/cpu/probe.hpp>
#include <omnisparse/backend/cpu/select.hpp>
#include <omnisparse/backend/cpu/shares.hpp>
#include <omnisparse/rescue/none.hpp>

#include <cmath>
#include <utility>

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

using detail::wants;

/// The memory of planning, beside attend_memory.
template <class A>
struct plan_memory {
  static constexpr int most_slots = 32;  // lists whose moments are held at a time
  probe_memory<A> probe;
  block_moments<A> moments;
  tensor_view<A, host, 3> lse;  ///< [batch, q_heads, q_tokens], nats, of what rows see
  A* high = nullptr;            ///< [batch, q_heads, q_tokens], of windows, as in tile_scratch
  A* total = nullptr;           ///< [batch, q_heads, q_tokens]
  double* sums = nullptr;       ///< [threads, 2 dim], running sums of keys
  std::byte* far = nullptr;
  std::size_t far_bytes = 0;
  int block = 64;  ///< the smaller block of both estimates
  int blocks = 0;  ///< of a slot
  int slots = 0;   ///< of moments

  template <class Arena, class Policies>
  static plan_memory take(Arena& arena, attention_shape const& shape, Policies const& p,
                          int threads) noexcept {
    constexpr bool estimates = wants<Policies>::far || wants<Policies>::coverage;
    auto const threads_n = static_cast<std::size_t>(threads);
    int const rows = larger(1, shape.q_tokens);
    int const chunk_rows = p.rows.rows > 0 ? smaller(p.rows.rows, rows) : rows;
    plan_memory m;
    m.block = smaller(detail::estimate_of(p.selector).block, detail::estimate_of(p.rescue).block);
    m.probe = probe_memory<A>::take(arena, shape, chunk_rows, threads);
    if constexpr (wants<Policies>::contrast) {
      m.sums = arena.template take<double>(threads_n * 2 * static_cast<std::size_t>(shape.dim));
    }
    if constexpr (estimates) {
      std::int64_t const lists =
          std::int64_t{shape.batch} * shape.kv_heads * ceil_div(rows, chunk_rows);
      m.slots = static_cast<int>(std::min(lists, std::int64_t{most_slots}));
      m.blocks = block_moments<A>::blocks(shape.kv_tokens, m.block);
      m.moments =
          block_moments<A>::take(arena, static_cast<std::size_t>(m.slots), m.blocks, shape.dim);
      m.lse = {nullptr, {shape.batch, shape.q_heads, shape.q_tokens}};
      m.lse.data = arena.template take<A>(static_cast<std::size_t>(m.lse.size()));
      detail::arena one;
      far_scratch<A>::take(one, shape.kv_tokens, m.block, shape.dim);
      m.far_bytes = round_up(one.needed(), std::size_t{256});
      m.far = arena.template take<std::byte>(m.far_bytes * threads_n);
    }
    if constexpr (wants<Policies>::far && wants<Policies>::coverage) {
      m.high = arena.template take<A>(static_cast<std::size_t>(m.lse.size()));
      m.total = arena.template take<A>(static_cast<std::size_t>(m.lse.size()));
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
    // Without contrast there is no such memory.
    double* const sink = sums == nullptr ? sums : sums + std::ptrdiff_t{thread} * 2 * dim;
    double* const pool = sums == nullptr ? sums : sink + dim;
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
          int const sinks = smaller(first, taken), pooled = taken - sinks;
          on_sink = call.scale.logit(on_sink, dim) / larger(1, sinks);
          on_pool = call.scale.logit(on_pool, dim) / larger(1, pooled);
          double const share = pooled > 0 ? contrast_share(on_sink, on_pool) : 0.0;
          keeps = p.selector.keeps(
              {static_cast<float>(on_sink), static_cast<float>(on_pool), static_cast<float>(share)},
              {position, h});
        } else if constexpr (!wants<Policies>::far) {
          keeps = p.selector.keeps({}, {position, h});
        }
        if (keeps || is_text_row(call, b, position)) kind = row_class::active;
      }
    }
  });
}

/// Measures the moments of `count` slots: key set n of `keys_of`, of KV head (b, g) of `slot_of`.
/// Neighbouring slots mostly read the same keys, so blocks are the outer loop.
template <class T, class SlotOf, class KeysOf, class Also>
void measure_slots(attention_call<T, host> const& call, far_estimate const& estimate, int count,
                   SlotOf const& slot_of, KeysOf const& keys_of, Also const& also, int threads,
                   plan_memory<accumulator_t<T>> const& pm,
                   block_moments<accumulator_t<T>>* moments) noexcept {
  constexpr int part = 16;  // blocks
  int most = 0;
  for (int n = 0; n < count; ++n) {
    int const tokens = keys_of(n).tokens;
    moments[n] = pm.moments.begin(n, pm.blocks, tokens, estimate, call.shape.dim);
    most = larger(most, ceil_div(tokens, estimate.block));
  }
  parallel_for(threads, std::int64_t{ceil_div(most, part)} * count, [&](long long at, int) {
    int const n = static_cast<int>(at % count), first = static_cast<int>(at / count) * part;
    moment_keys const keys = keys_of(n);
    auto const [b, g] = slot_of(n);
    measure_blocks(call, b, g, keys, estimate, first,
                   smaller(first + part, ceil_div(keys.tokens, estimate.block)), moments[n]);
  });
  parallel_for(threads, count, [&](long long at, int) {
    int const n = static_cast<int>(at);
    auto const [b, g] = slot_of(n);
    pool_blocks(call, b, g, keys_of(n), estimate, moments[n]);
    also(n);
  });
}

/// Classes of one tile of rows: `rows` (row, head) codes from `first` on of KV head g of sequence
/// b. One packing of q serves the near field and the estimate of what is beyond. The state that the
/// window leaves is kept for the rescue.
template <class T, class Policies>
void classify_tile(attention_call<T, host> const& call, Policies const& p,
                   plan_view<host> const& plan, tile_rows_view const& rows, int count,
                   block_moments<accumulator_t<T>> const& moments,
                   attend_memory<accumulator_t<T>> const& m,
                   plan_memory<accumulator_t<T>> const& pm, int thread) noexcept {
  using A = accumulator_t<T>;
  attention_shape const& shape = call.shape;
  auto const s = m.scratch_of(thread, shape.dim);
  auto const f = pm.far_of(thread, shape);
  int const tokens = rows.extent.kv_tokens;
  bool tame = pack_tile(call, rows, count, s);
  key_range windows[tile_rows];
  for (int r = 0; r < count; ++r) {
    int const position = rows.position(r);
    windows[r] = p.near.window_of(position, tokens, p.limit);
    s.begin(0)[r] = windows[r].begin;
    s.end(0)[r] = windows[r].end;
    s.begin(1)[r] = 0;
    s.end(1)[r] = p.near.sinks_of(position, tokens, p.limit).end;
  }
  std::ptrdiff_t const slot =
      std::ptrdiff_t{rows.b} * shape.kv_heads + rows.first_head / shape.group();
  A const* const panels = m.kv.panels_at(slot);
  tame = tame && m.kv.tame[slot] != 0;
  key_run<A> const window{panels, nullptr, s.begin(0), s.end(0), true, tame};
  key_run<A> const sinks{panels, nullptr, s.begin(1), s.end(1), true, tame};
  attend_tile(s.q, count, shape.dim, &window, 1, s.tile);
  if constexpr (wants<Policies>::coverage) {
    for (int r = 0; r < count; ++r) {
      std::int64_t const at = pm.lse.at(rows.b, rows.head(r), rows.index(r)) - pm.lse.data;
      pm.high[at] = s.tile.high[s.tile.slot(r)];
      pm.total[at] = s.tile.total[s.tile.slot(r)];
    }
  }
  attend_runs(s.q, count, shape.dim, &sinks, p.near.sinks > 0 ? 1 : 0, s.tile);
  estimate_tile(s.q, count, windows, p.near, p.limit, tokens, shape.dim,
                detail::estimate_of(p.selector), moments, tokens, s.tile.scores, f);
  for (int r = 0; r < count; ++r) {
    A const near = tile_lse(s.tile, r), far = f.lse[s.tile.slot(r)];
    int const position = rows.position(r), h = rows.head(r);
    bool const keeps = p.selector.keeps(
        {static_cast<float>(near), static_cast<float>(far), mass_share(far, near, 1.f)},
        {position, h});
    plan.rows_at(rows.b, h)[rows.index(r)] =
        keeps || is_text_row(call, rows.b, position) ? row_class::active : row_class::lazy;
  }
}

/// Classes of all rows by a selector that observes near_and_far. Rows that do not exist are left.
template <class T, class Policies>
void select_rows_by_far_mass(attention_call<T, host> const& call, Policies const& p,
                             plan_view<host> const& plan, attend_memory<accumulator_t<T>>& m,
                             plan_memory<accumulator_t<T>>& pm) noexcept {
  using A = accumulator_t<T>;
  attention_shape const& shape = call.shape;
  int const group = shape.group(), slots = shape.batch * shape.kv_heads;
  int const tiles = ceil_div(shape.q_tokens * group, tile_rows);
  block_moments<A> moments[plan_memory<A>::most_slots];
  for (int first = 0; first < slots; first += pm.slots) {
    auto const slot_of = [&](int n) {
      return std::pair{(first + n) / shape.kv_heads, (first + n) % shape.kv_heads};
    };
    auto const extent_at = [&](int n) { return extent_of(shape, call.in, slot_of(n).first); };
    int const count = smaller(pm.slots, slots - first);
    measure_slots(
        call, detail::estimate_of(p.selector), count, slot_of,
        [&](int n) {
          int const tokens = extent_at(n).kv_tokens;
          return moment_keys{smaller(p.near.sinks, tokens), tokens};
        },
        [](int) {}, m.threads, pm, moments);
    parallel_for(m.threads, std::int64_t{count} * tiles, [&](long long at, int thread) {
      int const n = static_cast<int>(at / tiles), begin = static_cast<int>(at % tiles) * tile_rows;
      auto const [b, g] = slot_of(n);
      sequence_extent const extent = extent_at(n);
      int const rows = smaller(tile_rows, extent.q_tokens * group - begin);
      if (rows <= 0) return;
      int codes[tile_rows];
      row_coding const coding = row_coding::of(group);
      for (int r = 0; r < rows; ++r) {
        codes[r] = coding.code((begin + r) / group, (begin + r) % group);
      }
      classify_tile(call, p, plan, {codes, coding, g * group, extent, b}, rows, moments[n], m, pm,
                    thread);
    });
  }
}

/// Rescues rows of one tile of active rows. Unless pm.lse holds what they see, as `seen` tells, the
/// list is attended to first, from the state that the window left where that is known.
template <class T, class Policies>
void rescue_tile(attention_call<T, host> const& call, Policies const& p,
                 plan_view<host> const& plan, row_tile const& tile,
                 block_moments<accumulator_t<T>> const& moments, int moment_tokens, bool seen,
                 attend_memory<accumulator_t<T>> const& m, plan_memory<accumulator_t<T>> const& pm,
                 int thread) noexcept {
  using A = accumulator_t<T>;
  attention_shape const& shape = call.shape;
  auto const s = m.scratch_of(thread, shape.dim);
  auto const f = pm.far_of(thread, shape);
  tile_rows_view const rows = rows_of_tile(call, m.units, tile);
  bool const tame = pack_tile(call, rows, tile.rows, s);
  if (!seen) {
    key_run<A> all[thread_scratch<A>::most_runs];
    int const runs = set_runs(call, p.near, p.limit, m, tile, rows, tame, s, all);
    bool const resumes = wants<Policies>::far && tile.kind == row_class::active;
    clear_tile(s.tile, tile.rows, shape.dim, false);
    for (int r = 0; resumes && r < tile.rows; ++r) {
      std::int64_t const at = pm.lse.at(rows.b, rows.head(r), rows.index(r)) - pm.lse.data;
      s.tile.high[s.tile.slot(r)] = pm.high[at];
      s.tile.total[s.tile.slot(r)] = pm.total[at];
    }
    int const skip = resumes ? 1 : 0;
    attend_runs(s.q, tile.rows, shape.dim, all + skip, runs - skip, s.tile);
  }
  key_range windows[tile_rows];
  A lse[tile_rows];
  for (int r = 0; r < tile.rows; ++r) {
    windows[r] = p.near.window_of(rows.position(r), rows.extent.kv_tokens, p.limit);
    lse[r] = seen ? pm.lse(rows.b, rows.head(r), rows.index(r)) : tile_lse(s.tile, r);
  }
  estimate_tile(s.q, tile.rows, windows, p.near, p.limit, rows.extent.kv_tokens, shape.dim,
                detail::estimate_of(p.rescue), moments, moment_tokens, s.tile.scores, f);
  for (int r = 0; r < tile.rows; ++r) {
    A const left_out = f.lse[s.tile.slot(r)];
    float const share = is_empty(left_out) ? 1.f : mass_share(lse[r], left_out, 0.f);
    if (p.rescue.rescues({share}, {rows.position(r), rows.head(r)})) {
      plan.rows_at(rows.b, rows.head(r))[rows.index(r)] = row_class::rescued;
    }
  }
}

/// Turns active rows that the rescue policy names into rescued ones. Where `seen`, pm.lse holds
/// what each active row sees, and the units in `m` are those of the pass that made it.
template <class T, class Policies>
void rescue_rows(attention_call<T, host> const& call, Policies const& p,
                 plan_view<host> const& plan, attend_memory<accumulator_t<T>>& m,
                 plan_memory<accumulator_t<T>>& pm, bool seen) noexcept {
  using A = accumulator_t<T>;
  attention_shape const& shape = call.shape;
  far_estimate const estimate = detail::estimate_of(p.rescue);
  class_set const active = classes_of(row_class::active);
  attention_call<T, host> keys_only = call;
  keys_only.v = {};
  keys_only.writes = false;
  if (!seen) gather_rows(call, {plan, active}, p.near, p.limit, m.threads, m.units);
  block_moments<A> moments[plan_memory<A>::most_slots];
  for (int first = 0; first < m.units.count;) {
    int const last =
        seen ? smaller(m.units.count, first + pm.slots) : place_lists(m, first, pm.slots);
    auto const unit_of = [&](int n) -> row_unit& { return m.units.units[first + n]; };
    auto const keys_of = [&](int n) {
      row_unit const& u = unit_of(n);
      if (u.counts[static_cast<int>(row_class::active)] == 0) return moment_keys{};
      sequence_extent const extent = extent_of(shape, call.in, u.b);
      // Under a causal mask nothing behind the chunk's last row matters.
      int const end =
          extent.position(smaller(extent.q_tokens, (u.c + 1) * plan.chunk_rows) - 1) + 1;
      int const tokens = p.limit == mask::causal
                             ? smaller(extent.kv_tokens, round_up(larger(0, end), estimate.block))
                             : extent.kv_tokens;
      return moment_keys{smaller(p.near.sinks, extent.kv_tokens), tokens,
                         plan.kept_at(u.b, u.c, u.g) + u.list_begin, u.list_count};
    };
    measure_slots(
        call, estimate, last - first, [&](int n) { return std::pair{unit_of(n).b, unit_of(n).g}; },
        keys_of,
        [&](int n) {
          if (!seen && unit_of(n).list_size > 0) pack_list(keys_only, plan, unit_of(n), m);
        },
        m.threads, pm, moments);
    int const tiles = cut_tiles(m.units, active, first, last, shape, p.near, p.limit, m.tiles);
    parallel_for(m.threads, tiles, [&](long long n, int thread) {
      int const slot = m.tiles[n].unit - first;
      rescue_tile(keys_only, p, plan, m.tiles[n], moments[slot], keys_of(slot).tokens, seen, m, pm,
                  thread);
    });
    first = last;
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
    for (int c = 0; c < plan.chunks(); c += pm.probe.wave) {
      select_chunks(call, p, plan, b, c, smaller(pm.probe.wave, plan.chunks() - c), extent, m,
                    pm.probe);
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
    rescue_rows(call, p, plan, m, pm, seen);
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

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
