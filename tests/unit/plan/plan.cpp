#include <omnisparse/plan/check.hpp>
#include <omnisparse/plan/serialize.hpp>
#include <omnisparse/plan/summary.hpp>
#include <omnisparse/testing/plans.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <utility>

using namespace omnisparse;

namespace {
attention_shape const shape{2, 4, 2, 30, 40, 16};
}

TEST_CASE("each defect of a plan is named") {
  attention_plan<> const owner(shape, chunk{7});
  auto const plan = owner.view();
  CHECK(plan.chunks() == 5);
  testing::fill_plan(plan, testing::plan_kind::random, 3);
  CHECK(check_plan(plan, shape).ok());
  auto const defect = [&](char const* word, auto const& damage) {
    testing::fill_plan(plan, testing::plan_kind::full, 3);
    auto view = plan;
    damage(view);
    status const s = check_plan(view, shape);
    CHECK(s.code == status_code::invalid_plan);
    CHECK_MESSAGE(std::strstr(s.message, word) != nullptr, s.message);
  };
  defect("another shape", [](auto& p) { p.shape.dim = 8; });
  defect("chunk_rows", [](auto& p) { p.chunk_rows = 0; });
  defect("null", [](auto& p) { p.rows = nullptr; });
  defect("null", [](auto& p) { p.kept = nullptr; });
  defect("row class", [](auto& p) { p.rows[p.row_count() - 1] = static_cast<row_class>(3); });
  defect("count", [](auto& p) { p.kept_counts[19] = 41; });
  defect("count", [](auto& p) { p.kept_counts[0] = -1; });
  defect("ascending", [](auto& p) { p.kept_at(1, 4, 1)[39] = 40; });
  defect("ascending", [](auto& p) { p.kept_at(0, 0, 0)[0] = -1; });
  defect("ascending", [](auto& p) { p.kept_at(0, 2, 1)[5] = 4; });
}

TEST_CASE("a summary counts what the definition makes visible") {
  for (mask const limit : {mask::causal, mask::full}) {
    for (testing::plan_kind const kind : testing::plan_kinds) {
      near_field const near{5, 2};
      attention_plan<> const owner(shape, chunk{7});
      auto const plan = owner.view();
      testing::fill_plan(plan, kind, 11);
      int const q_lengths[2] = {30, 11}, kv_lengths[2] = {40, 13};
      inputs<> in;
      in.q_lengths = {q_lengths, {2}};
      in.kv_lengths = {kv_lengths, {2}};
      std::int64_t seen = 0, allowed = 0;
      for (int b = 0; b < 2; ++b) {
        for (int h = 0; h < 4; ++h) {
          for (int i = 0; i < q_lengths[b]; ++i) {
            int const position = kv_lengths[b] - q_lengths[b] + i;
            for (int j = 0; j < kv_lengths[b]; ++j) {
              if (limit == mask::causal && j > position) continue;
              ++allowed;
              bool listed = false;
              for (int n = 0; n < plan.kept_counts[plan.list(b, i / 7, h / 2)]; ++n) {
                listed = listed || plan.kept_at(b, i / 7, h / 2)[n] == j;
              }
              auto const row = plan.rows_at(b, h)[i];
              seen += j < 2 || std::abs(position - j) < 5 || row == row_class::rescued ||
                      (row == row_class::active && listed);
            }
          }
        }
      }
      auto const sum = summarize(plan, near, limit, in);
      CHECK(sum.visible_pairs == seen);
      CHECK(sum.mask_pairs == allowed);
      if (kind == testing::plan_kind::all_active) CHECK(sum.active == 1.0);
      if (kind == testing::plan_kind::all_lazy) CHECK(sum.active == 0.0);
      CHECK(to_string(sum).find("density") != std::string::npos);
    }
  }
}

TEST_CASE("a plan survives saving and loading; damaged bytes are refused") {
  attention_plan<> const owner(shape, chunk{7}, 25);
  testing::fill_plan(owner.view(), testing::plan_kind::random, 5);
  std::string const bytes = to_bytes(owner);
  attention_plan<> read;
  REQUIRE(from_bytes(bytes, read).ok());
  CHECK(to_bytes(read) == bytes);
  CHECK(read.view().capacity == 25);
  for (std::size_t size = 0; size < bytes.size(); size += 1 + size / 40) {
    CHECK(from_bytes(bytes.substr(0, size), read).code == status_code::damaged_data);
  }
  CHECK_FALSE(from_bytes(bytes + "x", read).ok());
  for (std::size_t at = 0; at < 44; ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = bytes;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      attention_plan<> other;
      if (from_bytes(damaged, other).ok()) CHECK(check_plan(other, other.view().shape).ok());
    }
  }
  CHECK(to_bytes(read) == bytes);
}

TEST_CASE("room beyond the keys survives saving; few bytes that ask for much memory are refused") {
  attention_plan<> const roomy({1, 4, 2, 20, 30, 8}, chunk{7}, 40);
  attention_plan<> read;
  REQUIRE(from_bytes(to_bytes(roomy), read).ok());
  CHECK(read.view().capacity == 40);
  std::string const good = to_bytes(attention_plan<>({1, 1, 1, 2, 2, 8}));
  auto const with = [&](std::initializer_list<std::pair<int, std::int32_t>> const& changes) {
    std::string bytes = good;  // magic, format, B, Hq, Hkv, Nq, Nkv, D, chunk, capacity
    for (auto const& [at, value] : changes) {
      std::memcpy(bytes.data() + 8 + 4 * at, &value, sizeof value);
    }
    return from_bytes(bytes, read).code;
  };
  std::int32_t const most = 0x7fffffff, lowest = -most - 1;
  CHECK(with({}) == status_code::ok);
  CHECK(with({{5, most}, {8, most}}) == status_code::damaged_data);
  CHECK(with({{5, 1 << 28}, {8, 1 << 28}}) == status_code::damaged_data);
  CHECK(with({{5, 1 << 27}, {8, 1 << 27}}) == status_code::damaged_data);
  for (int field = 1; field < 9; ++field) {
    for (std::int32_t const value : {lowest, -1, most, 1 << 30}) {
      status_code const answer = with({{field, value}});
      // D and the rows of an only list may be anything that makes sense.
      if (value < 0 || (field != 6 && field != 7)) CHECK(answer == status_code::damaged_data);
    }
  }
  CHECK(with({{1, 0}, {2, most}, {3, most}, {4, most}}) == status_code::damaged_data);
  CHECK(with({{1, 1 << 16}, {2, 1 << 16}, {3, 1 << 16}, {4, 1 << 16}}) ==
        status_code::damaged_data);
}

TEST_CASE("an empty plan has memory; a senseless one has none") {
  CHECK(attention_plan<>({1, 1, 1, 0, 0, 8}));
  CHECK_FALSE(attention_plan<>({1, 1, 0, 4, 4, 8}));
  CHECK_FALSE(attention_plan<>({-1, 1, 1, 4, 4, 8}));
}

TEST_CASE("plans are copied between whole memories of their own") {
  attention_plan<> const from(shape, chunk{7}), to(shape, chunk{7}), other(shape, chunk{8});
  auto const refused = [](plan_view<> const& t, plan_view<> const& f, char const* word) {
    status const s = detail::check_plan_copy(t, f);
    return s.code != status_code::ok && std::string(s.message).find(word) != std::string::npos;
  };
  CHECK(detail::check_plan_copy(to.view(), from.view()).ok());
  CHECK(refused(other, from, "one shape"));
  CHECK(refused(to, to, "shares memory"));
  plan_view<> bad = to;
  bad.kept = from.view().kept + 1;
  CHECK(refused(bad, from, "shares memory"));
  bad = to;
  bad.recalls = reinterpret_cast<float*>(bad.kept_counts);
  CHECK(refused(bad, from, "shares memory"));
  bad = to;
  bad.rows = nullptr;
  CHECK(refused(bad, from, "null parts"));
  CHECK(refused(from, bad, "null parts"));
  bad = to;
  bad.recalls = nullptr;
  CHECK(refused(bad, from, "recalls"));
  plan_view<> without = from;
  without.recalls = nullptr;
  CHECK(detail::check_plan_copy(bad, without).ok());
}
