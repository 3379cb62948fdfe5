/// @file
/// The answer of every call that can refuse: a code, a sentence, and the device's own error.
#pragma once

#include <omnisparse/core/config.hpp>

#if defined(__cpp_exceptions)
#  include <stdexcept>
#endif

namespace omnisparse {

/// What kind of refusal a `status` is.
enum class status_code : unsigned char {
  ok,
  invalid_shape,        ///< extents that do not fit each other
  invalid_view,         ///< a null pointer or a stride the backend cannot read
  invalid_plan,         ///< a plan that is unsorted, out of range, or made for another shape
  invalid_option,       ///< an option outside its range
  unsupported,          ///< legal, but not on this backend
  workspace_too_small,  ///< fewer bytes than `workspace_bytes` asks for
  out_of_pages,         ///< the cache's pool is full; nothing was stored
  unknown_sequence,     ///< a cache sequence that was never added or is finished
  damaged_data,         ///< serialized data that is truncated or inconsistent
  device_error          ///< a launch failed; see `status::device_error`
};

/// The result of a call: `ok()`, or a code and a static sentence that names what is wrong, the
/// limit and the remedy. Nothing was written to any output unless `ok()`.
struct [[nodiscard]] status {
  status_code code = status_code::ok;
  char const* message = "ok";
  int device_error = 0;  ///< the CUDA error, as an int; 0 where there is none

  constexpr bool ok() const noexcept { return code == status_code::ok; }
  constexpr explicit operator bool() const noexcept { return ok(); }
};

#if defined(__cpp_exceptions)
/// Throws std::runtime_error with the sentence of `s` unless it is ok.
inline void or_throw(status s) {
  if (!s.ok()) throw std::runtime_error(s.message);
}
#endif

}  // namespace omnisparse
