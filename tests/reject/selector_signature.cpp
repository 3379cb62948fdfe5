// expect: omnisparse: a selector answers 'bool keeps(observes, query_row) const noexcept'
#include <omnisparse/attention.hpp>

#include <vector>

struct mine {
  using observes = omnisparse::observation::nothing;
#ifdef OMNISPARSE_KO
  int keeps(observes, omnisparse::query_row) const noexcept { return 1; }
#else
  bool keeps(observes, omnisparse::query_row) const noexcept { return true; }
#endif
};

auto const attend = omnisparse::attention{omnisparse::backend::cpu{}}.with(mine{});
