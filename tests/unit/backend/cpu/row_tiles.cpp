#include <omnisparse/backend/cpu/row_tiles.hpp>
#include <omnisparse/core/workspace.hpp>
#include <omnisparse/testing/plans.hpp>

#include <doctest/doctest.h>

#include <vector>

using namespace omnisparse;
using namespace omnisparse::cpu;

TEST_CASE("a row's code holds its index and its head, and ascends with both") {
  for (int group = 1; group <= 17; ++group) {
    row_coding const coding = row_coding::of(group);
    int before = -1;
    for (int i = 0; i < 50; ++i) {
      for (int h = 0; h < group; ++h) {
        int const code = coding.code(i, h);
        CHECK(coding.index(code) == i);
        CHECK(coding.head(code) == h);
        CHECK(code > before);
        before = code;
      }
    }
  }
}

TEST_CASE("units hold each wanted row once, by class, position and head") {
  attention_shape const s{2, 6, 2, 50, 70, 8};
  attention_plan<> const plan(s, chunk{16});
  testing::fill_plan(plan, testing::plan_kind::random, 3);
  auto const view = plan.view();
  attention_call<float, host> call;
  call.shape = s;
  std::vector<int> const lengths = {50, 37};
  call.in.q_lengths = {lengths.data(), {2}};
  detail::arena count;
  row_units::take(count, s);
  std::vector<std::byte> memory(count.needed());
  detail::arena arena(memory.data(), memory.size());
  row_units units = row_units::take(arena, s);
  row_coding const coding = row_coding::of(3);
  for (class_set const wanted : {every_class, classes_of(row_class::active),
                                 classes_of(row_class::lazy, row_class::rescued)}) {
    gather_rows(call, {view, wanted}, {5, 2}, mask::causal, 2, units);
    REQUIRE(units.count == 2 * 2 * 4);
    for (int n = 0; n < units.count; ++n) {
      row_unit const& u = units.units[n];
      std::vector<int> expected;
      for (auto const kind : {row_class::lazy, row_class::active, row_class::rescued}) {
        std::size_t const before = expected.size();
        int const end = std::min(lengths[static_cast<std::size_t>(u.b)], (u.c + 1) * 16);
        for (int i = u.c * 16; i < end; ++i) {
          for (int h = 0; h < 3; ++h) {
            if (wanted.holds(kind) && view.rows_at(u.b, u.g * 3 + h)[i] == kind) {
              expected.push_back(coding.code(i, h));
            }
          }
        }
        CHECK(u.counts[static_cast<int>(kind)] == static_cast<int>(expected.size() - before));
      }
      int const* const rows = units.rows_of(s, u);
      CHECK(std::vector<int>(rows, rows + expected.size()) == expected);
    }
  }
}
