// expect: omnisparse: a rescue observes nothing or coverage
#include <omnisparse/attention.hpp>

#include <vector>

#ifdef OMNISPARSE_KO
using looks_at = omnisparse::observation::near_and_far;
#else
using looks_at = omnisparse::observation::coverage;
#endif
struct mine {
  using observes = looks_at;
  bool rescues(observes, omnisparse::query_row) const noexcept { return false; }
};

auto const attend = omnisparse::attention{omnisparse::backend::cpu{}}.with(mine{});
