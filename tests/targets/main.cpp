#include "units.hpp"

#include <doctest/doctest.h>

// Each unit attends by both units' plans, by its own code; weak.py looks for code that they share.
TEST_CASE("units of unlike flags keep to their own code and exchange plans") {
  std::string newer_plan, older_plan;
  unit_report const old = older_unit(older_plan);
  CHECK(old.lanes == 4);
  CHECK(old.worst < 1e-5f);
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return;
  unit_report const fresh = newer_unit(newer_plan);
  CHECK(fresh.lanes == OMNISPARSE_NEWER_LANES);
  CHECK(fresh.worst < 1e-5f);
  CHECK(fresh.code != old.code);
  CHECK(fresh.workspace != old.workspace);
  unit_report const crossed = older_unit(newer_plan), back = newer_unit(older_plan);
  CHECK(crossed.worst < 1e-5f);
  CHECK(back.worst < 1e-5f);
  CHECK(crossed.density == doctest::Approx(fresh.density));
  CHECK(back.density == doctest::Approx(old.density));
}
