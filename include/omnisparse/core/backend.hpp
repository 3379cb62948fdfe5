/// @file
/// The backends as tags. A tag carries only what its user sets; the work is in `backend/`.
#pragma once

#include <omnisparse/core/tensor_view.hpp>

namespace omnisparse {

/// The fast CPU path's place in order: nothing to say, the call returns when the work is done.
struct in_order {};

/// The most threads that a call on the CPU uses: `.with(threads{4})`. 0, the default, leaves it to
/// OpenMP; a negative number is refused. Results never depend on it. Workspace grows with it: a
/// call whose workspace was counted for fewer threads uses as many as fit. With 1 a call never
/// enters OpenMP, so that it is safe in a child process made by fork: there GNU's OpenMP waits for
/// ever once the parent has used threads.
struct threads {
  int count = 0;
};

namespace backend {
inline namespace OMNISPARSE_TARGET {

/// The fast CPU backend: tiles that fit the caches, OpenMP threads where found.
struct cpu {
  using space = host;
  using stream = in_order;
  int threads = 0;  ///< >= 0, at most; 0: as many as OpenMP would use. See omnisparse::threads
};

/// The oracle: the definition written out in double precision, one thread, slow for ever.
struct reference {
  using space = host;
  using stream = in_order;
};

}  // namespace OMNISPARSE_TARGET
}  // namespace backend

/// What a backend does: specialised by each backend in its own header.
template <class Backend>
struct engine;

}  // namespace omnisparse
