// expect: omnisparse: a selector answers 'bool keeps(observes, query_row) const noexcept'
#include <omnisparse/attention.hpp>

#include <vector>

struct mine {
  using observes = omnisparse::observation::nothing;
  bool keeps(observes, omnisparse::query_row) const
#ifndef OMNISPARSE_KO
      noexcept
#endif
  {
    return true;
  }
};

auto const attend = omnisparse::attention{omnisparse::backend::cpu{}}.with(mine{});
