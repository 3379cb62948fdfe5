// expect: omnisparse: options are judged by 'char const* refuses() const noexcept'
#include <omnisparse/attention.hpp>

struct mine {
  using observes = omnisparse::observation::nothing;
  int stride = 1;
#ifdef OMNISPARSE_KO
  bool refuses() const noexcept { return stride < 1; }
#else
  char const* refuses() const noexcept { return stride < 1 ? "stride must be >= 1" : nullptr; }
#endif
  bool keeps(observes, omnisparse::query_row row) const noexcept {
    return row.position % stride == 0;
  }
};

auto const attend = omnisparse::attention{omnisparse::backend::cpu{}}.with(mine{});
