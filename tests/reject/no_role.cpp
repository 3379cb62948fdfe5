// expect: omnisparse: a policy has 'keeps', 'rescues', 'score', 'tokens', 'stores' or 'fetches'
#include <omnisparse/attention.hpp>

#include <vector>

struct mine {
  using observes = omnisparse::observation::nothing;
#ifdef OMNISPARSE_KO
  bool keep(observes, omnisparse::query_row) const noexcept { return true; }
#else
  bool keeps(observes, omnisparse::query_row) const noexcept { return true; }
#endif
};

auto const attend = omnisparse::attention{omnisparse::backend::cpu{}}.with(mine{});
