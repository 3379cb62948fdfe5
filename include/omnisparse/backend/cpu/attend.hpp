/// @file
/// Attention by classes and lists on the CPU: pack, gather, and run the row tiles over threads.
#pragma once

#include <omnisparse/backend/cpu/exact_row.hpp>
#include <omnisparse/backend/cpu/flash_tile.hpp>
#include <omnisparse/backend/cpu/packed_kv.hpp>
#include <omnisparse/backend/cpu/row_tiles.hpp>
#include <omnisparse/core/call.hpp>
#include <omnisparse/core/workspace.hpp>
#include <omnisparse/plan/plan.hpp>

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

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
    if (!call.writes) continue;
    u.list_finite &= pack_values<A>([&](int r) { return call.v.at(u.b, u.g, positions[n + r]); },
                                    count, call.shape.dim, m.lists.values_at(0, u.list_at + n));
  }
}

/// Where rows of one tile, ascending by position, find their limits in an ascending list: searches
/// on from the last answer.
struct list_cursor {
  int const* list = nullptr;
  int size = 0;
  int key = 0;
  int at = 0;  ///< entries below key

  int below(int next) noexcept {
    // Entries are distinct: at most next - key of them lie between.
    int const* const last = list + smaller(size, at + larger(0, next - key));
    at = static_cast<int>(std::lower_bound(list + at, last, next) - list);
    key = next;
    return at;
  }
};

/// The head of the group and the position of row r of a tile.
struct tile_rows_view {
  int const* rows = nullptr;  ///< codes
  row_coding coding;
  int first_head = 0;
  sequence_extent extent;
  int b = 0;

  int index(int r) const noexcept { return coding.index(rows[r]); }
  int head(int r) const noexcept { return first_head + coding.head(rows[r]); }
  int position(int r) const noexcept { return extent.position(index(r)); }
};

template <class T>
tile_rows_view rows_of_tile(attention_call<T, host> const& call, row_units const& units,
                            row_tile const& tile) noexcept {
  row_unit const& u = units.units[tile.unit];
  int const group = call.shape.group();
  return {units.rows_of(call.shape, u) + tile.first, row_coding::of(group), u.g * group,
          extent_of(call.shape, call.in, u.b), u.b};
}

/// Packs the rows of a tile. Returns whether they are modest, see pack.hpp.
template <class T>
bool pack_tile(attention_call<T, host> const& call, tile_rows_view const& rows, int count,
               thread_scratch<accumulator_t<T>> const& s) noexcept {
  using A = accumulator_t<T>;
  return pack_rows<A>([&](int r) { return call.q.at(rows.b, rows.head(r), rows.index(r)); }, count,
                      call.shape.dim, score_scale<A>(call.scale, call.shape.dim), s.q);
}

/// The runs of a tile, their limits in `s`. Lazy rows: window, sinks. Active: window, list before
/// it, and list behind it under `mask::full`. Rescued: everything. Returns their number. `tame`:
/// the rows are modest.
template <class T>
int set_runs(attention_call<T, host> const& call, near_field const& near, mask limit,
             attend_memory<accumulator_t<T>> const& m, row_tile const& tile,
             tile_rows_view const& rows, bool tame, thread_scratch<accumulator_t<T>> const& s,
             key_run<accumulator_t<T>>* all) noexcept {
  using A = accumulator_t<T>;
  row_unit const& u = m.units.units[tile.unit];
  int const tokens = rows.extent.kv_tokens;
  list_cursor before{m.positions + u.list_at, u.list_size}, behind = before;
  for (int r = 0; r < tile.rows; ++r) {
    int const position = rows.position(r);
    key_range const window = tile.kind == row_class::rescued
                                 ? near_field::visible(position, tokens, limit)
                                 : near.window_of(position, tokens, limit);
    s.begin(0)[r] = window.begin;
    s.end(0)[r] = window.end;
    s.begin(1)[r] = 0;
    if (tile.kind == row_class::lazy) {
      s.end(1)[r] = near.sinks_of(position, tokens, limit).end;
    } else if (tile.kind == row_class::active) {
      s.end(1)[r] = before.below(window.begin);
      s.begin(2)[r] = limit == mask::full ? behind.below(window.end) : u.list_size;
      s.end(2)[r] = u.list_size;
    }
  }
  std::ptrdiff_t const slot = std::ptrdiff_t{u.b} * call.shape.kv_heads + u.g;
  bool const values = call.writes;
  tame = tame && m.kv.tame[slot] != 0;
  key_run<A> const whole{m.kv.panels_at(slot),
                         values ? m.kv.values_at(slot) : nullptr,
                         nullptr,
                         nullptr,
                         m.kv.finite[slot] != 0,
                         tame};
  key_run<A> const list{m.lists.panels_at(0, u.list_at),
                        values ? m.lists.values_at(0, u.list_at) : nullptr,
                        nullptr,
                        nullptr,
                        u.list_finite,
                        tame};
  for (int n = 0; n < thread_scratch<A>::most_runs; ++n) {
    all[n] = n > 0 && tile.kind == row_class::active ? list : whole;
    all[n].begin = s.begin(n);
    all[n].end = s.end(n);
  }
  if (tile.kind == row_class::rescued) return 1;
  if (tile.kind == row_class::lazy) return near.sinks > 0 ? 2 : 1;
  return limit == mask::causal ? 2 : 3;
}

/// Finishes row r of a tile exactly, from its runs.
template <class T>
void finish_exactly(attention_call<T, host> const& call, attend_memory<accumulator_t<T>> const& m,
                    row_tile const& tile, tile_rows_view const& rows, int r,
                    key_run<accumulator_t<T>> const* runs, int run_count,
                    tile_scratch<accumulator_t<T>> const& s) noexcept {
  using A = accumulator_t<T>;
  row_unit const& u = m.units.units[tile.unit];
  int const* const list = m.positions + u.list_at;
  auto const for_each_key = [&](auto const& use) {
    for (int n = 0; n < run_count; ++n) {
      for (int at = runs[n].begin[r]; at < runs[n].end[r]; ++at) {
        int const j = n > 0 && tile.kind == row_class::active ? list[at] : at;
        use(call.k.at(u.b, u.g, j), std::ptrdiff_t{1}, call.v.at(u.b, u.g, j));
      }
    }
  };
  A* const sums = s.sums + std::ptrdiff_t{r} * padded_dim<A>(call.shape.dim);
  int const slot = tile_scratch<A>::slot(r);
  s.high[slot] = exact_row(call.q.at(rows.b, rows.head(r), rows.index(r)), call.shape.dim,
                           call.scale, for_each_key, [&](int d, A x) { sums[d] = x; });
  s.total[slot] = A(-1);
}

/// Runs one tile and gives each row to emit(b, h, i, tile scratch, r, exactly): where the row is
/// not sound, exactly() finishes it so.
template <class T, class Emit>
void run_tile(attention_call<T, host> const& call, near_field const& near, mask limit,
              attend_memory<accumulator_t<T>> const& m, row_tile const& tile,
              thread_scratch<accumulator_t<T>> const& s, Emit const& emit) noexcept {
  tile_rows_view const rows = rows_of_tile(call, m.units, tile);
  bool const tame = pack_tile(call, rows, tile.rows, s);
  key_run<accumulator_t<T>> all[thread_scratch<accumulator_t<T>>::most_runs];
  int const runs = set_runs(call, near, limit, m, tile, rows, tame, s, all);
  attend_tile(s.q, tile.rows, call.shape.dim, all, runs, s.tile);
  for (int r = 0; r < tile.rows; ++r) {
    emit(rows.b, rows.head(r), rows.index(r), s.tile, r,
         [&] { finish_exactly(call, m, tile, rows, r, all, runs, s.tile); });
  }
}

/// Gives the lists of units from `first` on places in `m.lists`, as many as fit, `most` at most.
/// Returns the unit behind them.
template <class A>
int place_lists(attend_memory<A>& m, int first, int most) noexcept {
  int last = first;
  std::ptrdiff_t used = 0;
  for (; last < smaller(m.units.count, first + most); ++last) {
    row_unit& u = m.units.units[last];
    int const size = padded_keys<A>(u.list_size);
    if (used + size > m.lists.slot_keys) break;
    u.list_at = used;
    used += size;
  }
  return last;
}

/// Attends all rows of `choice` and gives each to emit, see run_tile. The call's keys and values
/// are packed already (pack_call).
template <class T, class Emit>
void attend_rows(attention_call<T, host> const& call, row_choice const& choice,
                 near_field const& near, mask limit, attend_memory<accumulator_t<T>>& m,
                 Emit const& emit) noexcept {
  attention_shape const& shape = call.shape;
  gather_rows(call, choice, near, limit, m.threads, m.units);
  for (int first = 0; first < m.units.count;) {
    int const last = place_lists(m, first, m.units.count);
    parallel_for(m.threads, last - first, [&](long long n, int) {
      row_unit& u = m.units.units[first + n];
      if (u.list_size > 0) pack_list(call, choice.plan, u, m);
    });
    int const tiles = cut_tiles(m.units, every_class, first, last, shape, near, limit, m.tiles);
    parallel_for(m.threads, tiles, [&](long long n, int thread) {
      run_tile(call, near, limit, m, m.tiles[n], m.scratch_of(thread, shape.dim), emit);
    });
    first = last;
  }
}

/// Writes each row's output and, where given, log-sum-exp.
template <class T>
auto store_rows(attention_call<T, host> const& call) noexcept {
  using A = accumulator_t<T>;
  bool const coarse = is_coarse(score_scale<A>(call.scale, call.shape.dim));
  return [&call, coarse](int b, int h, int i, auto const& tile, int r, auto const& exactly) {
    if (coarse || !is_sound(tile, r, call.shape.dim)) exactly();
    store_tile_row(tile, r, call.shape.dim, call.out.at(b, h, i));
    if (!call.lse.is_null()) call.lse(b, h, i) = tile_lse(tile, r);
  };
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

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
