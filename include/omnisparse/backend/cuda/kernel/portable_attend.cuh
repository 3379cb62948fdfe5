/// @file
/// Attention of one row tile to what its rows see, by mma.sync. Compute capability 8.0 and newer.
#pragma once

#include <omnisparse/backend/cuda/collective/online_softmax.cuh>
#include <omnisparse/backend/cuda/collective/portable_tile.cuh>
#include <omnisparse/backend/cuda/collective/warp_product.cuh>
#include <omnisparse/backend/cuda/tuning/portable_attend.cuh>

namespace omnisparse::kernel {

/// Shared memory of a block: the rows of q, and one key tile each of K and V.
template <class T, int D, bool Values>
struct portable_shared {
  static constexpr tuning::portable_attend tune = tuning::portable_attend_for(sizeof(T), D);
  static constexpr int row_bytes = collective::row_layout<T, D>::row_bytes;
  using tile_type = collective::portable_tile<tune.rows, tune.keys>;

  static constexpr int alignment = sizeof(T) == 2 ? 1024 : 16;
  alignas(alignment) unsigned char q[tune.rows * row_bytes];
  alignas(alignment) unsigned char k[tune.keys * row_bytes];
  alignas(alignment) unsigned char v[Values ? tune.keys * row_bytes : 16];
  tile_type tile;
};

/// Adds infinite and NaN values to the rows that see them, after a product that took them as 0.
/// key_of(j) is key j of the tile, entry first + j; `ranges` are those of the rows from this
/// thread's first on.
template <class T, int D, int Across, int Keys, class KeyOf>
__device__ __forceinline__ void add_infinite(float (&o)[Across][D / 8][4], T const* values,
                                             std::int64_t stride, int dim, int first,
                                             KeyOf const& key_of,
                                             key_range const* ranges) noexcept {
  int const column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll 1
  for (int j = 0; j < Keys; ++j) {
    int const key = key_of(j);
    if (key < 0) continue;
    T const* const row = values + key * stride + column;
    bool sees[Across][2];
#pragma unroll
    for (int m = 0; m < Across; ++m) {
      sees[m][0] = ranges[16 * m].contains(first + j);
      sees[m][1] = ranges[16 * m + 8].contains(first + j);
    }
#pragma unroll
    for (int e = 0; e < D / 4; ++e) {
      if (e / 2 * 8 >= dim) break;
      float const x = static_cast<float>(row[e / 2 * 8 + e % 2]);
      if (isfinite(x)) continue;
#pragma unroll
      for (int m = 0; m < Across; ++m) {
        if (sees[m][0]) o[m][e / 2][e % 2] += x;
        if (sees[m][1]) o[m][e / 2][e % 2 + 2] += x;
      }
    }
  }
}

/// Writes out and lse of a warp's rows: `stage`, of `Across` * 16 rows of the warp's own, turns
/// fragments into whole rows of global memory. Rows that saw nothing get 0 and -inf.
template <class T, int D, bool Values, int Across, class Tile>
__device__ __forceinline__ void store_rows(collective::portable_task<T> const& task,
                                           row_tile const& place, Tile const& tile,
                                           float (&o)[Across][D / 8][4],
                                           collective::online_softmax<T> const (&softmax)[Across],
                                           unsigned char* stage) noexcept {
  using layout = collective::row_layout<T, D>;
  attention_shape const& shape = task.call.shape;
  int const lane = static_cast<int>(threadIdx.x) % 32;
  int const first = static_cast<int>(threadIdx.x) / 32 * Across * 16;
  int const group = shape.group(), first_head = tile.frame.g * group, b = tile.frame.b;
#pragma unroll
  for (int m = 0; m < Across; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int const r = first + 16 * m + 8 * half + lane / 4;
      bool const empty = r >= tile.frame.existing || softmax[m].is_empty(half);
      float share = empty ? 0.f : 1.f / softmax[m].sum[half];
      if (lane % 4 == 0 && r < tile.frame.rows) {
        int const row = task.schedule.row(shape, place.list, place.first + r);
        task.lse(b, first_head + row % group, row / group) =
            empty ? -__builtin_huge_valf() : softmax[m].lse(half, task.terms);
      }
      if constexpr (Values) {
        auto const each = [&](auto const& act) {
#pragma unroll
          for (int n = 0; n < D / 8; ++n) act(o[m][n][2 * half]), act(o[m][n][2 * half + 1]);
        };
        if (!empty && collective::bound_averages<T>(softmax[m].sum[half], each)) share = 1.f;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          T* const to = layout::at(stage, r, 8 * n + lane % 4 * 2);
          to[0] = static_cast<T>(empty ? 0.f : o[m][n][2 * half] * share);
          to[1] = static_cast<T>(empty ? 0.f : o[m][n][2 * half + 1] * share);
        }
      }
    }
  }
  if constexpr (Values) {
    __syncwarp();
#pragma unroll 1
    for (int e = lane; e < Across * 16 * layout::chunks; e += 32) {
      int const r = first + e / layout::chunks, chunk = e % layout::chunks;
      if (r >= tile.frame.rows) break;
      if (chunk * layout::each >= shape.dim) continue;
      int const row = task.schedule.row(shape, place.list, place.first + r);
      T* const to =
          task.call.out.at(b, first_head + row % group, row / group) + chunk * layout::each;
      unsigned char const* const from = stage + layout::offset(r, chunk);
      if (task.aligned_out) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<uint4 const*>(from);
      } else {
        for (int i = 0; i < layout::each; ++i) to[i] = reinterpret_cast<T const*>(from)[i];
      }
    }
  }
}

/// A row tile of the schedule. While one key tile is multiplied by q, its values arrive; while they
/// are multiplied, the next keys do. Overwrites out and lse of the tile's rows; rows that see
/// nothing get 0 and -inf. Without `Values` v and out are not touched. Grid: most_tiles.
template <class T, int D, bool Values>
__global__ void __launch_bounds__(tuning::portable_attend::threads)
    portable_attend(collective::portable_task<T> const task) {
  using shared = portable_shared<T, D, Values>;
  constexpr int rows = shared::tune.rows, keys = shared::tune.keys;
  constexpr int threads = tuning::portable_attend::threads;
  constexpr int warp_rows = rows / tuning::portable_attend::warps, across = warp_rows / 16;
  using product = collective::warp_product<T, D, warp_rows, keys>;
  extern __shared__ __align__(1024) unsigned char portable_bytes[];
  shared& sh = *reinterpret_cast<shared*>(portable_bytes);
  auto& tile = sh.tile;

  attention_shape const& shape = task.call.shape;
  row_tile const place = task.schedule.tile(shape, static_cast<int>(blockIdx.x));
  if (place.count == 0) return;
  int const group = shape.group();
  tile.set(task, place);
  int const b = tile.frame.b, first_head = tile.frame.g * group;

  // The rows of q and the first keys.
  auto const& k = task.call.k;
  auto const& v = task.call.v;
  auto const copy_keys = [&](unsigned char* to, tensor_view<T const, device> const& from,
                             bool aligned, collective::key_cursor at, int slot) {
    T const* const head = from.at(tile.frame.b, tile.frame.g);
    key_segment const& segment = tile.segments[at.segment];
    if (aligned && !segment.listed()) {
      collective::copy_range<T, D, keys, threads>(
          to, head + at.first * from.stride(2), from.stride(2), segment.end - at.first, shape.dim);
      return;
    }
    int const last = tile.last_key();
    collective::copy_rows<T, D, keys, threads>(
        to, aligned, head, shape.dim, [&](int r) -> T const* {
          int const key = tile.key(slot, r, last);
          return key < 0 ? nullptr : head + key * from.stride(2);
        });
  };
  collective::key_cursor now = tile.begin();
  tile.find_keys(now, 0);
  tile.find_keys(tile.after(now), 1);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
  if (!tile.is_done(now)) {
    T const* const any = task.call.q.at(b, first_head);
    collective::copy_rows<T, D, rows, threads>(
        sh.q, task.aligned_q, any, shape.dim, [&](int r) -> T const* {
          int const row = tile.row[r];
          return row < 0 ? nullptr : task.call.q.at(b, first_head + row % group, row / group);
        });
    copy_keys(sh.k, k, task.aligned_k, now, 0);
  }
  ptx::cp_async_commit();

  float o[across][D / 8][4] = {};
  collective::online_softmax<T> softmax[across];
#pragma unroll
  for (int m = 0; m < across; ++m) softmax[m].clear();

#pragma unroll 1
  for (int slot = 0; !tile.is_done(now); ++slot, now = tile.after(now)) {
    ptx::cp_async_wait<0>();
    __syncthreads();  // keys are there; nobody reads the last values any more
    if (now.first == tile.segments[now.segment].begin) tile.show(task, now.segment);
    if constexpr (Values) {
      copy_keys(sh.v, v, task.aligned_v, now, slot);
      ptx::cp_async_commit();
    }
    float s[across][keys / 8][4];
    product::scores(s, sh.q, sh.k);

    bool const masked = !tile.segments[now.segment].is_plain(now.first, now.first + keys);
    ptx::cp_async_wait<0>();
    bool infinite = false;
    if (Values && masked) {  // 0 times infinity or NaN is NaN: keep it from rows that do not see it
      infinite = collective::zero_infinite<T, D, keys, threads>(sh.v);
    }
    infinite = __syncthreads_or(infinite);  // values are there; nobody reads the keys any more
    if (auto const next = tile.after(now); !tile.is_done(next)) {
      copy_keys(sh.k, k, task.aligned_k, next, slot + 1);
      tile.find_keys(tile.after(next), slot + 2);
      ptx::cp_async_commit();
    }

    int const thread = collective::block_thread(), quad = thread % 32 / 4;
    key_range const* const ranges = tile.range + thread / 32 * warp_rows + quad;
    if (masked) {
#pragma unroll
      for (int m = 0; m < across; ++m) {
        key_range const seen[2] = {ranges[16 * m], ranges[16 * m + 8]};
        collective::mask_scores(reinterpret_cast<float(&)[keys / 2]>(s[m]), seen, now.first,
                                thread % 32);
      }
    }
#pragma unroll
    for (int m = 0; m < across; ++m) {
      softmax[m].template update<false, true>(reinterpret_cast<float(&)[keys / 2]>(s[m]),
                                              task.terms);
      if constexpr (Values) softmax[m].rescale_sums(reinterpret_cast<float(&)[D / 2]>(o[m]));
    }
    if constexpr (Values) {
      product::values(o, s, sh.v);
      if (infinite) {
        add_infinite<T, D, across, keys>(
            o, v.at(tile.frame.b, tile.frame.g), v.stride(2), shape.dim, now.first,
            [&](int j) { return tile.key(slot, j, tile.last_key()); }, ranges);
      }
    }
  }

  __syncwarp();  // no lane of this warp reads its rows of q any more: out goes through them
#pragma unroll
  for (int m = 0; m < across; ++m) softmax[m].finish();
  store_rows<T, D, Values>(task, place, tile, o, softmax, sh.q);
}

}  // namespace omnisparse::kernel
