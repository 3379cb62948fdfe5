// Rows sorted by class on the GPU, against the same done row by row.
#include "support/device.cuh"

#include <omnisparse/backend/cuda/gather.cuh>

using namespace testing_support;

namespace {

// A device array as a host vector.
template <class X>
std::vector<X> fetch(X const* data, std::int64_t count) {
  std::vector<X> values(static_cast<std::size_t>(count));
  check_cuda(cudaMemcpy(values.data(), data, values.size() * sizeof(X), cudaMemcpyDefault));
  return values;
}

struct gather_case {
  attention_shape shape;
  int chunk_rows, tile_rows;
  near_field near;
  std::vector<int> q_lengths, kv_lengths;
};

gather_case const cases[] = {
    {{1, 1, 1, 1, 1}, 1, 128, {1, 0}, {}, {}},
    {{1, 7, 1, 1000, 1200}, 1000, 128, {64, 16}, {}, {}},
    {{2, 6, 2, 700, 700}, 128, 64, {0, 0}, {}, {}},
    {{3, 4, 4, 129, 400}, 64, 128, {100, 4}, {129, 0, 65}, {400, 7, 0}},
    {{1, 3, 1, 5000, 90}, 2999, 192, {5000, 100}, {4097}, {}},
    {{1, 16, 1, 40, 40}, 1, 16, {3, 1}, {}, {}},
    {{1, 2, 1, 2100, 2100}, 2, 128, {1, 0}, {}, {}},  // more units than one block scans at a time
    {{1, 1, 1, 70000, 300}, 70000, 128, {50, 3}, {}, {}},  // more parts of a unit than a warp
};

// What the schedule must hold; returns the first thing that is wrong.
std::string wrong(gather_case const& c, mask limit, plan_view<host> const& plan,
                  inputs<host> const& in, kernel::row_schedule const& s, unsigned classes) {
  attention_shape const& shape = c.shape;
  int const group = shape.group(), units = s.units(shape);
  std::int64_t const places = plan.row_count();
  auto const rows = fetch(s.rows, places), left = fetch(s.left, places);
  auto const right = s.right != nullptr ? fetch(s.right, places) : std::vector<int>();
  auto const begins = fetch(s.list_begin, units);
  auto const tiles = fetch(s.tiles, s.most_tiles);
  int const tile_count = fetch(s.tile_count, 1)[0];
  if (tile_count > s.most_tiles) return "more tiles than there is room for";
  int at = 0;
  for (int kind = 2; kind >= 0; --kind) {
    if ((classes >> kind & 1u) == 0) continue;
    for (int list = units - 1; list >= 0; --list) {
      int const g = list % shape.kv_heads, chunk = list / shape.kv_heads % s.chunks;
      int const b = list / shape.kv_heads / s.chunks;
      auto const extent = extent_of(shape, in, b);
      auto const ordered = [&](int wanted) {
        std::vector<int> found;
        for (int i = chunk * c.chunk_rows; i < smaller((chunk + 1) * c.chunk_rows, extent.q_tokens);
             ++i) {
          for (int h = 0; h < group; ++h) {
            int const is = static_cast<int>(plan.rows_at(b, g * group + h)[i]);
            if ((is > 2 ? 0 : is) == wanted) found.push_back(i * group + h);
          }
        }
        return found;
      };
      int offset = 0;
      for (int k = 0; k < kind; ++k) offset += static_cast<int>(ordered(k).size());
      auto const wanted = ordered(kind);
      auto const count = static_cast<int>(wanted.size());
      int const* const kept = plan.kept_at(b, chunk, g);
      int const* const end = kept + plan.kept_counts[list];
      int const* const first = std::lower_bound(kept, end, c.near.sinks);
      if (begins[static_cast<std::size_t>(list)] != first - kept) return "list_begin";
      for (int n = 0; n < count; ++n) {
        auto const place = static_cast<std::size_t>(s.begin(shape, list) + offset + n);
        int const row = wanted[static_cast<std::size_t>(n)];
        if (rows[place] != row) return "row " + std::to_string(n) + " of " + std::to_string(list);
        if (kind != 1) continue;
        auto const window = c.near.window_of(extent.position(row / group), extent.kv_tokens, limit);
        if (left[place] != std::lower_bound(first, end, window.begin) - first) return "left";
        if (limit == mask::full &&
            right[place] != std::lower_bound(first, end, window.end) - first) {
          return "right";
        }
      }
      for (int n = ceil_div(count, c.tile_rows) - 1; n >= 0; --n, ++at) {
        auto const& tile = tiles[static_cast<std::size_t>(at)];
        if (tile.list != list || static_cast<int>(tile.kind) != kind ||
            tile.first != offset + n * c.tile_rows ||
            tile.count != smaller(c.tile_rows, count - n * c.tile_rows)) {
          return "tile " + std::to_string(at);
        }
      }
    }
  }
  return at == tile_count ? "" : "the number of tiles";
}

}  // namespace

TEST_CASE("rows are sorted by class, position and head, and cut into tiles") {
  std::uint64_t seed = 0;
  for (gather_case const& c : cases) {
    device_inputs const in(c.shape, c.q_lengths, c.kv_lengths);
    for (auto const kind : testing::plan_kinds) {
      mask const limit = ++seed % 2 == 0 ? mask::causal : mask::full;
      unsigned const classes = 1u + static_cast<unsigned>(seed * 5 % 7);
      attention_plan<> const plan(c.shape, {c.chunk_rows});
      testing::fill_plan(plan, kind, seed);
      if (kind == testing::plan_kind::clustered) {  // what is no class counts as lazy
        plan.view().rows[plan.view().row_count() / 2] = static_cast<row_class>(200);
      }
      attention_plan<device> const twin(c.shape, {c.chunk_rows});
      REQUIRE(copy_plan(twin.view(), plan.view()).ok());

      detail::arena count;
      kernel::row_schedule::take(count, c.shape, c.chunk_rows, limit, c.tile_rows);
      poisoned const memory(count.needed());
      detail::arena arena(memory.data(), memory.bytes());
      auto const s = kernel::row_schedule::take(arena, c.shape, c.chunk_rows, limit, c.tile_rows);
      REQUIRE(arena.fits());
      attention_call<float, device> call;
      call.shape = c.shape;
      call.in = in.on_device;
      REQUIRE(launch::gather_rows(call, c.near, limit, twin.view(), {classes}, s, {}).ok());
      check_cuda(cudaDeviceSynchronize());
      std::string const why = wrong(c, limit, plan, in.on_host, s, classes);
      CHECK_MESSAGE(why.empty(), "case " << &c - cases << " plan " << static_cast<int>(kind)
                                         << " classes " << classes << ": " << why);
      CHECK(memory.guard_is_whole());
    }
  }
}

TEST_CASE("a damaged plan stays within its lists") {
  gather_case const c{{2, 6, 2, 300, 500}, 100, 64, {20, 4}, {}, {}};
  testing::generator g(5);
  attention_plan<> const plan(c.shape, {c.chunk_rows}, 200);
  auto const view = plan.view();
  for (std::int64_t n = 0; n < view.row_count(); ++n) {
    view.rows[n] = static_cast<row_class>(g.below(256));
  }
  for (std::int64_t n = 0; n < view.list_count(); ++n) {
    view.kept_counts[n] = static_cast<int>(g.bits());
  }
  for (std::int64_t n = 0; n < view.list_count() * 200; ++n) {
    view.kept[n] = static_cast<int>(g.bits());
  }
  attention_plan<device> const twin(c.shape, {c.chunk_rows}, 200);
  REQUIRE(copy_plan(twin.view(), view).ok());
  detail::arena count;
  kernel::row_schedule::take(count, c.shape, c.chunk_rows, mask::full, c.tile_rows);
  poisoned const memory(count.needed());
  detail::arena arena(memory.data(), memory.bytes());
  auto const s = kernel::row_schedule::take(arena, c.shape, c.chunk_rows, mask::full, c.tile_rows);
  attention_call<float, device> call;
  call.shape = c.shape;
  REQUIRE(launch::gather_rows(call, c.near, mask::full, twin.view(), {7}, s, {}).ok());
  check_cuda(cudaDeviceSynchronize());
  CHECK(memory.guard_is_whole());
  int const tiles = fetch(s.tile_count, 1)[0];
  REQUIRE(tiles <= s.most_tiles);
  int rows = 0;
  for (auto const& tile : fetch(s.tiles, tiles)) rows += tile.count;
  CHECK(rows == view.row_count());
  for (int const begin : fetch(s.list_begin, s.units(c.shape))) {
    CHECK(begin >= 0);
    CHECK(begin <= 200);
  }
}
