// expect: omnisparse: a slimmer answers 'bool stores(token) const noexcept'
#include <omnisparse/attention.hpp>

#include <vector>

struct mine {
  using observes = omnisparse::observation::nothing;
#ifdef OMNISPARSE_KO
  bool stores(int) const noexcept { return true; }
#else
  bool stores(omnisparse::token) const noexcept { return true; }
#endif
};

auto const attend = omnisparse::attention{omnisparse::backend::cpu{}}.with(mine{});
