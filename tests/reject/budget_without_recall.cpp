// expect: omnisparse: a reach is measured at a recall: add 'float recall = 0.95f;'
#include <omnisparse/attention.hpp>

#include <vector>

struct mine {
  using observes = omnisparse::observation::own_reach;
#ifndef OMNISPARSE_KO
  float recall = 0.95f;
#endif
  int tokens(observes seen, omnisparse::kv_extent) const noexcept { return seen.reach; }
};

auto const attend = omnisparse::attention{omnisparse::backend::cpu{}}.with(mine{});
