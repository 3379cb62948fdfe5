/// @file
/// Cache slimming: what a plan and a storing policy leave in the cache.
#pragma once

#include <omnisparse/cache/kv_cache.hpp>
#include <omnisparse/core/check_shape.hpp>
#include <omnisparse/core/near_field.hpp>
#include <omnisparse/plan/check.hpp>
#include <omnisparse/plan/plan.hpp>

#include <algorithm>

namespace omnisparse::detail::inline OMNISPARSE_TARGET {

// Answers `is key j of this KV head stored?` for sequence b of a plan: asks the policy about
// token{j, kind, kept}, where kept means in the last list or in the last row's near field.
template <class Storer>
class storing {
 public:
  storing(Storer const& storer, near_field const& near, mask limit, plan_view<host> const& plan,
          inputs<host> const& in, int b) noexcept
      : storer_(storer),
        near_(near),
        limit_(limit),
        plan_(plan),
        in_(in),
        b_(b),
        extent_(extent_of(plan.shape, in, b)) {}

  int tokens() const noexcept { return extent_.kv_tokens; }

  segment kind(int j) const noexcept {
    bool const text = !in_.segments.is_null() && in_.segments(b_, j) == segment::text;
    return text ? segment::text : segment::visual;
  }

  bool operator()(int kv_head, int j) const noexcept {
    bool kept = near_.contains(j, extent_.kv_tokens - 1, extent_.kv_tokens, limit_);
    if (!kept && extent_.q_tokens > 0) {
      int const last_chunk = (extent_.q_tokens - 1) / plan_.chunk_rows;
      int const* const list = plan_.kept_at(b_, last_chunk, kv_head);
      int const* const end = list + plan_.kept_counts[plan_.list(b_, last_chunk, kv_head)];
      kept = std::binary_search(list, end, j);
    }
    return storer_.stores(token{j, kind(j), kept});
  }

 private:
  Storer storer_;
  near_field near_;
  mask limit_;
  plan_view<host> plan_;
  inputs<host> in_;
  int b_;
  sequence_extent extent_;
};

template <class Cache>
status check_slim(plan_view<host> const& plan, inputs<host> const& in, int b,
                  Cache const& cache) noexcept {
  if (b < 0 || b >= plan.shape.batch || plan.shape.kv_heads != cache.ref().kv_heads) {
    return {status_code::invalid_shape,
            "omnisparse: slimming needs a batch index inside the plan and as many KV heads in the "
            "plan as in the cache"};
  }
  if (status const bad = check_plan(plan, plan.shape); !bad.ok()) return bad;
  return check_inputs(in, plan.shape);
}

}  // namespace omnisparse::detail::inline OMNISPARSE_TARGET
