/// @file
/// Kept key and value rows, copied side by side.
#pragma once

#include <omnisparse/backend/cuda/chunk_range.cuh>
#include <omnisparse/plan/plan.hpp>

namespace omnisparse::kernel {

inline constexpr int pack_threads = 256;

/// Which rows go where. K and V are addressed in 16-byte pieces.
struct pack_task {
  plan_view<device> plan;
  chunk_range range;
  int sinks = 0;          ///< entries below are left out
  int rows_per_list = 0;  ///< a multiple of 128
  int parts = 1;          ///< CTAs a list
  int pieces = 0;         ///< of a row
  uint4 const* source[2];
  std::int64_t batch_stride[2], head_stride[2], token_stride[2];
  uint4* target[2];
};

/// Copies the listed rows of K and V and fills up the last 128 rows with zeros. Up to `Pieces`
/// times 16 bytes of a row, each a lane's. Grid: parts of each list of the range.
template <int Pieces>
__global__ void __launch_bounds__(pack_threads, 6) pack_rows(pack_task p) {
  constexpr int groups = pack_threads / Pieces;  // lanes that copy a row together
  constexpr int ahead = 4;                       // rows in flight for each
  static_assert(128 % (groups * ahead) == 0 || groups * ahead % 128 == 0);
  int const list = static_cast<int>(blockIdx.x) / p.parts;
  int const part = static_cast<int>(blockIdx.x) % p.parts, heads = p.plan.shape.kv_heads;
  int const b = p.range.batch_of(list, heads), g = list % heads;
  std::int64_t const from = p.plan.list(b, p.range.chunk_of(list, heads), g);
  int const* kept = p.plan.kept + from * p.plan.capacity;
  int rows = clamped(p.plan.kept_counts[from], 0, p.plan.capacity);

  // Sinks are a prefix of an ascending list, and no longer than their number.
  int skipped = 0;
  for (int first = 0; first < smaller(rows, p.sinks); first += pack_threads) {
    int const n = first + static_cast<int>(threadIdx.x);
    skipped += __syncthreads_count(n < smaller(rows, p.sinks) && kept[n] < p.sinks);
  }
  kept += skipped;
  rows = smaller(rows - skipped, p.rows_per_list);
  int const end = smaller(round_up(rows, 128), p.rows_per_list);
  int const last = p.plan.shape.kv_tokens - 1;

  int const piece = static_cast<int>(threadIdx.x) % Pieces;
  int const group = static_cast<int>(threadIdx.x) / Pieces;
  if (piece >= p.pieces) return;
  for (int first = part * groups * ahead; first < end; first += p.parts * groups * ahead) {
    int tokens[ahead];
    uint4 pieces[2][ahead];
#pragma unroll
    for (int n = 0; n < ahead; ++n) {
      int const row = first + n * groups + group;
      tokens[n] = row < rows ? smaller(larger(kept[row], 0), last) : -1;
    }
#pragma unroll
    for (int kv = 0; kv < 2; ++kv) {
      uint4 const* const source =
          p.source[kv] + b * p.batch_stride[kv] + g * p.head_stride[kv] + piece;
#pragma unroll
      for (int n = 0; n < ahead; ++n) {
        pieces[kv][n] =
            tokens[n] < 0 ? uint4{0, 0, 0, 0} : __ldg(source + tokens[n] * p.token_stride[kv]);
      }
    }
#pragma unroll
    for (int kv = 0; kv < 2; ++kv) {
      uint4* const target =
          p.target[kv] + (std::int64_t{list} * p.rows_per_list + first + group) * p.pieces + piece;
#pragma unroll
      for (int n = 0; n < ahead; ++n) {
        if (first + n * groups + group < end) target[n * groups * p.pieces] = pieces[kv][n];
      }
    }
  }
}

}  // namespace omnisparse::kernel
