// expect: omnisparse: a budget answers 'int tokens(observes, kv_extent) const noexcept'
#include <omnisparse/attention.hpp>

#include <vector>

struct mine {
  using observes = omnisparse::observation::nothing;
#ifdef OMNISPARSE_KO
  int tokens(observes) const noexcept { return 1; }
#else
  int tokens(observes, omnisparse::kv_extent) const noexcept { return 1; }
#endif
};

auto const attend = omnisparse::attention{omnisparse::backend::cpu{}}.with(mine{});
