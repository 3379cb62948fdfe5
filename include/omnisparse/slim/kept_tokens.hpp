/// @file
/// The cache stores what the last list kept.
#pragma once

#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::slim {

/// Per KV head: the visual tokens of the plan's last list and of the last row's near field stay,
/// all others go back to the pool as whole pages; text and generated tokens always stay. After the
/// published figure.
struct kept_tokens {
  using observes = observation::nothing;
  OMNISPARSE_HD constexpr bool stores(token t) const noexcept {
    return t.kept || t.kind == segment::text;
  }
};

}  // namespace omnisparse::slim
