// expect: omnisparse: a dtype is float, double, bfloat16 or half
#include <omnisparse/attention.hpp>

using namespace omnisparse;

status call(workspace_view<> memory) {
#ifdef OMNISPARSE_KO
  using number = int;
#else
  using number = float;
#endif
  tensor_view<number const> const q{}, k{};
  tensor_view<number> const out{};
  return attention{backend::cpu{}}(q, k, k, out, memory);
}
