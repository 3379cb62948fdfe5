// expect: omnisparse: this backend has no threads to count: leave 'threads' to backend::cpu
#include <omnisparse/attention.hpp>

using namespace omnisparse;

status call(attention_shape const& shape) {
#ifdef OMNISPARSE_KO
  using chosen = backend::reference;
#else
  using chosen = backend::cpu;
#endif
  return attention{chosen{}}.with(threads{1}).can_run(shape);
}
