/// @file
/// Workspace of the Hopper path, and how many lists are packed at a time.
#pragma once

#include <omnisparse/backend/cuda/collective/key_splits.hpp>
#include <omnisparse/backend/cuda/pack.cuh>
#include <omnisparse/backend/cuda/row_schedule.cuh>
#include <omnisparse/backend/cuda/tuning/head_dim.hpp>
#include <omnisparse/backend/cuda/tuning/hopper_attend.cuh>

namespace omnisparse::launch {

/// How many lists have room to be packed at a time: as many as fit 2.5 times the keys and values of
/// the call or 64 MB of each, at least those of one chunk; or just these.
enum class packing : unsigned char { usual, least };

/// Memory of the Hopper path: the schedule of gathered rows, and room for packed lists. Lists are
/// packed for a few chunks at a time; at 128K tokens in four chunks that is usually all of them.
template <class T>
struct hopper_memory {
  int* counter = nullptr;  ///< [1], the next work item of rows in order
  kernel::row_schedule schedule = {};
  packed_kv<T> pool = {};      ///< its rows_per_list is set for each group of chunks
  std::int64_t pool_rows = 0;  ///< of all lists together

  static hopper_memory take(omnisparse::detail::arena& arena, attention_shape const& shape,
                            int chunk_rows, mask limit, int capacity,
                            packing room = packing::usual) noexcept {
    hopper_memory m;
    bool const narrow = tuning::kernel_dim(shape.dim) == 64;
    int const tile_rows =
        (narrow ? tuning::hopper_attend_for<64>() : tuning::hopper_attend_for<128>()).rows();
    m.counter = arena.take<int>(1);
    m.schedule = kernel::row_schedule::take(arena, shape, chunk_rows, limit, tile_rows);
    std::int64_t const lists = std::int64_t{shape.batch} * shape.kv_heads;
    std::int64_t const one = lists * round_up(smaller(capacity, shape.kv_tokens), 128);
    m.pool_rows = one;
    if (room == packing::usual) {
      // One launch for all lists of a short call: its tail would cost more than the packing.
      std::int64_t const few = (std::int64_t{64} << 20) / (shape.dim * std::int64_t{sizeof(T)});
      m.pool_rows = larger(
          one, smaller(one * m.schedule.chunks, larger(few, lists * shape.kv_tokens * 5 / 2)));
    }
    auto const size = static_cast<std::size_t>(m.pool_rows) * static_cast<std::size_t>(shape.dim);
    m.pool.k = arena.take<T>(size);
    m.pool.v = arena.take<T>(size);
    return m;
  }

  /// The most packed rows that a list of chunk `c` has use for, in whole key tiles: an ascending
  /// list holds no more entries that a row of the chunk sees.
  int rows_of_chunk(attention_call<T, device> const& call, mask limit, int capacity,
                    int c) const noexcept {
    attention_shape const& shape = call.shape;
    int seen = shape.kv_tokens;
    if (limit == mask::causal && call.in.q_lengths.is_null()) {  // else a row may stand anywhere
      std::int64_t const end =
          smaller<std::int64_t>((std::int64_t{c} + 1) * schedule.chunk_rows, shape.q_tokens);
      seen = static_cast<int>(
          clamped<std::int64_t>(shape.kv_tokens - shape.q_tokens + end, 0, shape.kv_tokens));
    }
    return round_up(smaller(capacity, seen), 128);
  }

  /// Room for at most `wanted` partial row tiles of `width` columns, where packed lists of rows of
  /// `dim` elements are at other times. `worth` and `busy` as in key_splits.
  collective::key_splits splits(int dim, int width, int wanted, int worth,
                                int busy) const noexcept {
    std::int64_t const rows = schedule.tile_rows;
    auto const fit = pool_rows * dim * std::int64_t{sizeof(T)} / (rows * (width + 1) * 4);
    collective::key_splits s;
    s.worth = worth;
    s.busy = busy;
    s.slots = static_cast<int>(smaller<std::int64_t>(fit, wanted));
    s.out = reinterpret_cast<float*>(pool.k);
    s.lse = s.out + s.slots * rows * width;
    return s;
  }

  /// Calls act(range, packed) for groups of chunks whose lists fit the pool together, in order,
  /// until one of them fails.
  template <class Act>
  status for_each_group(attention_call<T, device> const& call, mask limit, int capacity,
                        Act const& act) const noexcept {
    std::int64_t const lists = std::int64_t{call.shape.batch} * call.shape.kv_heads;
    status s;
    for (chunk_range range{0, 1}; s.ok() && range.first < schedule.chunks;
         range = {range.first + range.count, 1}) {
      packed_kv<T> packed = pool;
      packed.rows_per_list = rows_of_chunk(call, limit, capacity, range.first);
      while (range.first + range.count < schedule.chunks) {
        int const rows = rows_of_chunk(call, limit, capacity, range.first + range.count);
        if (lists * (range.count + 1) * rows > pool_rows) break;
        packed.rows_per_list = rows;
        ++range.count;
      }
      if (packed.rows_per_list > 0) s = act(range, packed);
    }
    return s;
  }
};

}  // namespace omnisparse::launch
