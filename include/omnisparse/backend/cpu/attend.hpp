/// @file
/// Attention by classes and lists on the CPU: pack, gather, and run the row tiles over threads.
#pragma once

#include <omnisparse/backend/cpu/flash_tile.hpp>
#include <omnisparse/backend/cpu/packed_kv.hpp>
#include <omnisparse/backend/cpu/row_tiles.hpp>
#include <omnisparse/core/call.hpp>
#include <omnisparse/core/workspace.hpp>
#include <omnisparse/plan/plan.hpp>

namespace omnisparse::cpu {

/// One thread's memory: a tile's rows, their limits in each run, and the tile kernel's scratch.
template <class A>
struct thread_scratch {
  static constexpr int most_runs = 3;
  A* q = nullptr;         ///< packed rows [tile_rows, dim]
  int* limits = nullptr;  ///< [most_runs, begin and end, tile_rows]
  tile_scratch<A> tile;

  template <class Arena>
  static thread_scratch take(Arena& arena, int dim) noexcept {
    thread_scratch s;
    s.q = arena.template take<A>(packed_rows_size<A>(tile_rows, dim));
    s.limits = arena.template take<int>(most_runs * 2 * tile_rows);
    s.tile = tile_scratch<A>::take(arena, dim);
    return s;
  }
  int* begin(int run) const noexcept { return limits + 2 * run * tile_rows; }
  int* end(int run) const noexcept { return limits + (2 * run + 1) * tile_rows; }
};

/// The memory of an attention pass.
template <class A>
struct attend_memory {
  packed_kv<A> kv;
  packed_kv<A> lists;        ///< one slot: the packed lists of a wave, one after another
  int* positions = nullptr;  ///< of the packed list entries
  row_units units;
  row_tile* tiles = nullptr;
  std::byte* scratch = nullptr;
  std::size_t scratch_bytes = 0;
  int threads = 1;

  template <class Arena>
  static attend_memory take(Arena& arena, attention_shape const& shape, int threads) noexcept {
    auto const slots =
        static_cast<std::size_t>(shape.batch) * static_cast<std::size_t>(shape.kv_heads);
    attend_memory m;
    m.threads = threads;
    m.kv = packed_kv<A>::take(arena, slots, shape.kv_tokens, shape.dim);
    // A wave of lists: never less than one whole list, usually all lists of the call.
    int const heads = static_cast<int>(std::min<std::size_t>(slots, 64));
    int const wave = static_cast<int>(std::min<std::int64_t>(
        std::int64_t{padded_keys<A>(shape.kv_tokens)} * heads, std::int64_t{1} << 30));
    m.lists =
        packed_kv<A>::take(arena, 1, larger(wave, padded_keys<A>(shape.kv_tokens)), shape.dim);
    m.positions = arena.template take<int>(static_cast<std::size_t>(m.lists.slot_keys));
    m.units = row_units::take(arena, shape);
    m.tiles = arena.template take<row_tile>(most_tiles(shape));
    detail::arena one;
    thread_scratch<A>::take(one, shape.dim);
    m.scratch_bytes = round_up(one.needed(), std::size_t{256});
    m.scratch = arena.template take<std::byte>(m.scratch_bytes * static_cast<std::size_t>(threads));
    return m;
  }

  thread_scratch<A> scratch_of(int thread, int dim) const noexcept {
    detail::arena piece(scratch + scratch_bytes * static_cast<std::size_t>(thread), scratch_bytes);
    return thread_scratch<A>::take(piece, dim);
  }
};

/// Packs a unit's list behind `u.list_at`: the sinks, then the kept keys, so that one run holds
/// both.
template <class T>
void pack_list(attention_call<T, host> const& call, plan_view<host> const& plan, row_unit& u,
               attend_memory<accumulator_t<T>> const& m) noexcept {
  using A = accumulator_t<T>;
  int const sinks = u.list_size - u.list_count;
  int const* const kept = plan.kept_at(u.b, u.c, u.g) + u.list_begin;
  int* const positions = m.positions + u.list_at;
  for (int n = 0; n < u.list_size; ++n) positions[n] = n < sinks ? n : kept[n - sinks];
  for (int n = 0; n < u.list_size; n += strip<A>) {
    int const count = std::min(strip<A>, u.list_size - n);
    pack_panel<A>([&](int r) { return call.k.at(u.b, u.g, positions[n + r]); }, count,
                  call.shape.dim, m.lists.panels_at(0, u.list_at + n));
    if (call.v.is_null()) continue;
    u.list_finite &= pack_values<A>([&](int r) { return call.v.at(u.b, u.g, positions[n + r]); },
                                    count, call.shape.dim, m.lists.values_at(0, u.list_at + n));
  }
}

/// The limits of row r of a tile at `position` in each run; returns the number of runs of the
/// class. Lazy: window, sinks. Active: window, list before it, and list behind it under
/// `mask::full`.
template <class A>
int set_limits(thread_scratch<A> const& s, int r, row_class kind, int position, int kv_tokens,
               near_field const& near, mask limit, int const* list, int list_size) noexcept {
  key_range const window = kind == row_class::rescued
                               ? near_field::visible(position, kv_tokens, limit)
                               : near.window_of(position, kv_tokens, limit);
  s.begin(0)[r] = window.begin;
  s.end(0)[r] = window.end;
  if (kind == row_class::rescued) return 1;
  s.begin(1)[r] = 0;
  if (kind == row_class::lazy) {
    s.end(1)[r] = near.sinks_of(position, kv_tokens, limit).end;
    return near.sinks > 0 ? 2 : 1;
  }
  auto const below = [&](int key) {
    return static_cast<int>(std::lower_bound(list, list + list_size, key) - list);
  };
  s.end(1)[r] = below(window.begin);
  if (limit == mask::causal) return 2;
  s.begin(2)[r] = below(window.end);
  s.end(2)[r] = list_size;
  return 3;
}

/// Runs one tile and gives each row to emit(b, h, i, tile scratch, r).
template <class T, class Emit>
void run_tile(attention_call<T, host> const& call, near_field const& near, mask limit,
              attend_memory<accumulator_t<T>> const& m, row_tile const& tile,
              thread_scratch<accumulator_t<T>> const& s, Emit const& emit) noexcept {
  using A = accumulator_t<T>;
  attention_shape const& shape = call.shape;
  row_unit const& u = m.units.units[tile.unit];
  sequence_extent const extent = extent_of(shape, call.in, u.b);
  int const* const rows = m.units.rows_of(shape, u) + tile.first;
  int const group = shape.group();
  auto const head = [&](int r) { return u.g * group + rows[r] % group; };
  pack_rows<A>([&](int r) { return call.q.at(u.b, head(r), rows[r] / group); }, tile.rows,
               shape.dim, score_scale<A>(shape.dim), s.q);
  int runs = 0;
  for (int r = 0; r < tile.rows; ++r) {
    runs = set_limits(s, r, tile.kind, extent.position(rows[r] / group), extent.kv_tokens, near,
                      limit, m.positions + u.list_at, u.list_size);
  }
  std::ptrdiff_t const slot = std::ptrdiff_t{u.b} * shape.kv_heads + u.g;
  bool const values = !call.v.is_null();
  key_run<A> const whole{m.kv.panels_at(slot), values ? m.kv.values_at(slot) : nullptr, nullptr,
                         nullptr, m.kv.finite[slot] != 0};
  key_run<A> const list{m.lists.panels_at(0, u.list_at),
                        values ? m.lists.values_at(0, u.list_at) : nullptr, nullptr, nullptr,
                        u.list_finite};
  key_run<A> all[thread_scratch<A>::most_runs];
  for (int n = 0; n < runs; ++n) {
    all[n] = n > 0 && tile.kind == row_class::active ? list : whole;
    all[n].begin = s.begin(n);
    all[n].end = s.end(n);
  }
  attend_tile(s.q, tile.rows, shape.dim, all, runs, s.tile);
  for (int r = 0; r < tile.rows; ++r) emit(u.b, head(r), rows[r] / group, s.tile, r);
}

/// Attends all rows of `choice` and gives each to emit(b, h, i, tile scratch, r). The call's keys
/// are packed already (pack_call); without v only log-sum-exps come out.
template <class T, class Emit>
void attend_rows(attention_call<T, host> const& call, row_choice const& choice,
                 near_field const& near, mask limit, attend_memory<accumulator_t<T>>& m,
                 Emit const& emit) noexcept {
  using A = accumulator_t<T>;
  attention_shape const& shape = call.shape;
  gather_rows(call, choice, near, limit, m.threads, m.units);
  for (int first = 0; first < m.units.count;) {
    int last = first;
    std::ptrdiff_t used = 0;
    for (; last < m.units.count; ++last) {
      row_unit& u = m.units.units[last];
      int const size = padded_keys<A>(u.list_size);
      if (used + size > m.lists.slot_keys) break;
      u.list_at = used;
      used += size;
    }
    parallel_for(m.threads, last - first, [&](long long n, int) {
      row_unit& u = m.units.units[first + n];
      if (u.list_size > 0) pack_list(call, choice.plan, u, m);
    });
    int const tiles = cut_tiles(m.units, first, last, shape, near, limit, m.tiles);
    parallel_for(m.threads, tiles, [&](long long n, int thread) {
      run_tile(call, near, limit, m, m.tiles[n], m.scratch_of(thread, shape.dim), emit);
    });
    first = last;
  }
}

/// Writes each row's output and, where given, log-sum-exp.
template <class T>
auto store_rows(attention_call<T, host> const& call) noexcept {
  return [&call](int b, int h, int i, auto const& tile, int r) {
    store_tile_row(tile, r, call.shape.dim, call.out.at(b, h, i));
    if (!call.lse.is_null()) call.lse(b, h, i) = tile_lse(tile, r);
  };
}

/// Measures what the rows of `choice` see, without values: their log-sum-exps into `lse`
/// [batch, q_heads, q_tokens]. The units in `m` are left as those of the choice.
template <class T>
void measure_rows(attention_call<T, host> const& call, row_choice const& choice,
                  near_field const& near, mask limit, attend_memory<accumulator_t<T>>& m,
                  lse_view<T> const& lse) noexcept {
  attention_call<T, host> keys_only = call;
  keys_only.v = {};
  attend_rows(keys_only, choice, near, limit, m,
              [&](int b, int h, int i, auto const& tile, int r) {
                lse(b, h, i) = tile_lse(tile, r);
              });
}

/// Rows that do not exist see nothing: out 0, lse -inf.
template <class T>
void clear_missing_rows(attention_call<T, host> const& call) noexcept {
  for (int b = 0; b < call.shape.batch; ++b) {
    for (int h = 0; h < call.shape.q_heads; ++h) {
      for (int i = extent_of(call.shape, call.in, b).q_tokens; i < call.shape.q_tokens; ++i) {
        std::fill_n(call.out.at(b, h, i), call.shape.dim, T(accumulator_t<T>(0)));
        if (!call.lse.is_null()) call.lse(b, h, i) = empty_lse<accumulator_t<T>>();
      }
    }
  }
}

}  // namespace omnisparse::cpu
