// expect: omnisparse: a policy is copied into kernels: keep it trivially copyable, numbers and no
// containers
#include <omnisparse/attention.hpp>

#include <vector>

struct mine {
  using observes = omnisparse::observation::nothing;
#ifdef OMNISPARSE_KO
  std::vector<int> rows;
#endif
  bool keeps(observes, omnisparse::query_row) const noexcept { return true; }
};

auto const attend = omnisparse::attention{omnisparse::backend::cpu{}}.with(mine{});
