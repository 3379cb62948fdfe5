// expect: omnisparse: a fetching slimmer observes nothing or sink_and_mean
#include <omnisparse/attention.hpp>

#include <vector>

#ifdef OMNISPARSE_KO
using looks_at = omnisparse::observation::coverage;
#else
using looks_at = omnisparse::observation::nothing;
#endif
struct mine {
  using observes = looks_at;
  bool fetches(observes) const noexcept { return true; }
};

auto const attend = omnisparse::attention{omnisparse::backend::cpu{}}.with(mine{});
