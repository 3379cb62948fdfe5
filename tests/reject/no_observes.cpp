// expect: omnisparse: say what the policy looks at, for example 'using observes =
// observation::nothing;'
#include <omnisparse/attention.hpp>

#include <vector>

struct mine {
#ifndef OMNISPARSE_KO
  using observes = omnisparse::observation::nothing;
#endif
  bool keeps(omnisparse::observation::nothing, omnisparse::query_row) const noexcept {
    return true;
  }
};

auto const attend = omnisparse::attention{omnisparse::backend::cpu{}}.with(mine{});
