// expect: omnisparse: q, k, v and out have one dtype, and out is not const
#include <omnisparse/attention.hpp>

using namespace omnisparse;

status call(workspace_view<> memory) {
#ifdef OMNISPARSE_KO
  using other = half;
#else
  using other = float;
#endif
  tensor_view<float const> const q{};
  tensor_view<other const> const k{};
  tensor_view<float> const out{};
  return attention{backend::cpu{}}(q, k, k, out, memory);
}
