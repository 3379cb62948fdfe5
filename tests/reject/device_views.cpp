// expect: omnisparse: these views point into another memory space than the backend reads: copy the
// data there and make tensor_view<T, device> or tensor_view<T, host>
#include <omnisparse/attention.hpp>

using namespace omnisparse;

status call(workspace_view<> memory) {
#ifdef OMNISPARSE_KO
  using space = device;
#else
  using space = host;
#endif
  tensor_view<float const, space> const q{}, k{};
  tensor_view<float, space> const out{};
  return attention{backend::cpu{}}(q, k, k, out, memory);
}
