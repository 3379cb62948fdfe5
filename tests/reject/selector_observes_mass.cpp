// expect: omnisparse: a selector observes nothing, sink_and_mean or near_and_far
#include <omnisparse/attention.hpp>

#include <vector>

#ifdef OMNISPARSE_KO
using looks_at = omnisparse::observation::probe_mass;
#else
using looks_at = omnisparse::observation::near_and_far;
#endif
struct mine {
  using observes = looks_at;
  bool keeps(observes, omnisparse::query_row) const noexcept { return true; }
};

auto const attend = omnisparse::attention{omnisparse::backend::cpu{}}.with(mine{});
