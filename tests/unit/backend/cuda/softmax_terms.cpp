// The numbers that kernels scale logits by, and the head dimensions that kernels take.
#include <omnisparse/backend/cuda/collective/softmax_terms.hpp>
#include <omnisparse/backend/cuda/tuning/head_dim.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <initializer_list>

using namespace omnisparse;
using collective::logit_scale;
using collective::softmax_terms;

TEST_CASE("the default scale is 1 / sqrt D, rounded once") {
  struct {
    int dim;
    float nats, bits;
  } const known[] = {{64, 0.125f, 0x1.715476p-3f},
                     {128, 0.08838834764831845f, 0x1.0527dcp-3f},
                     {256, 0.0625f, 0x1.715476p-4f}};
  for (auto const& x : known) {
    logit_scale const s = logit_scale::of({}, x.dim);
    CHECK(s.nats == x.nats);
    CHECK(s.bits == x.bits);
  }
  for (int dim = 16; dim <= 256; dim += 8) {
    double const exact = 1 / std::sqrt(static_cast<double>(dim));
    CHECK(logit_scale::of({}, dim).nats == static_cast<float>(exact));
    CHECK(logit_scale::of({.value = exact}, 999).nats == static_cast<float>(exact));
  }
}

TEST_CASE("scales at both ends make normal numbers, whose quotients are finite") {
  for (double const value : {5e-324, 1e-300, 1e-30, 1.0, 1e30}) {
    logit_scale const s = logit_scale::of({.value = value}, 64);
    CHECK(std::isnormal(s.nats));
    CHECK(std::isnormal(s.bits));
    CHECK(is_finite(31.f / s.bits));
  }
  CHECK(logit_scale::of({.value = 1e-30}, 64).nats == 1e-30f);
}

TEST_CASE("terms of as many keys as there are sum to less than a half") {
  for (int const keys : {0, 1, 2, 3, 4, 1000, 1024, 131072, 0x7fffffff}) {
    auto const t = softmax_terms::of<bfloat16>({}, 64, keys);
    double const most = std::exp2(static_cast<double>(softmax_terms::slack - t.lift));
    CHECK(static_cast<double>(keys) * most < 0.5);
    CHECK(2 * larger(1.0, static_cast<double>(keys)) * most >= 0.25);
    CHECK(static_cast<double>(t.drop) == std::exp2(-static_cast<double>(t.lift)));
    CHECK(t.raise * t.drop == 1.f);
  }
  CHECK(softmax_terms::of<half>({}, 64, 1000).lift == 0.f);
  CHECK(softmax_terms::of<half>({}, 64, 1000).raise == 1.f);
}

TEST_CASE("heads of 16 to 256 elements, in steps of 8, have kernels that hold them") {
  int taken = 0;
  for (int dim = -8; dim <= 300; ++dim) {
    if (!tuning::takes_dim(dim)) continue;
    ++taken;
    CHECK(dim % 8 == 0);
    CHECK(tuning::kernel_dim(dim) >= dim);
  }
  CHECK(taken == 31);
  CHECK(tuning::takes_dim(16));
  CHECK(tuning::takes_dim(256));
  CHECK(tuning::kernel_dim(64) == 64);
  CHECK(tuning::kernel_dim(72) == 128);
  CHECK(tuning::kernel_dim(136) == 256);
}
