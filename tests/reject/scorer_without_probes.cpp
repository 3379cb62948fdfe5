// expect: omnisparse: a scorer answers 'bool probes(int row, int rows) const noexcept' and 'float
// score(observes, token) const noexcept'
#include <omnisparse/attention.hpp>

#include <vector>

struct mine {
  using observes = omnisparse::observation::nothing;
#ifndef OMNISPARSE_KO
  bool probes(int, int) const noexcept { return false; }
#endif
  float score(observes, omnisparse::token) const noexcept { return 0; }
};

auto const attend = omnisparse::attention{omnisparse::backend::cpu{}}.with(mine{});
