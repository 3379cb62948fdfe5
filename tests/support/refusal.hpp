/// @file
/// Calls with one thing wrong.
#pragma once

#include <omnisparse/attention.hpp>
#include <omnisparse/testing/laws.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <string>

namespace testing_support {

using namespace omnisparse;

inline attention_shape const refusal_shape{1, 4, 2, 8, 8, 16};

/// Is this the status of a refusal, with a sentence that holds `word`?
inline void check_refusal(status s, status_code code, char const* word) {
  CHECK_MESSAGE(s.code == code, s.message);
  CHECK_MESSAGE(std::strstr(s.message, word) != nullptr, s.message);
  CHECK(std::string(s.message).starts_with("omnisparse: "));
}

/// call(attend, tensors, result, workspace) must be refused so, and the outputs must stay NaN.
template <class Attention, class Call>
void refused_by(Attention const& attend, status_code code, char const* word, Call const& call) {
  auto const t = testing::random_tensors<float>(refusal_shape, 1);
  testing::result<float> r(refusal_shape);
  workspace<> memory(attend.workspace_bytes(refusal_shape));
  check_refusal(call(attend, t, r, memory), code, word);
  for (float const x : r.out) CHECK(is_nan(x));
  for (float const x : r.lse) CHECK(is_nan(x));
}

template <class Call>
void refused(status_code code, char const* word, Call const& call) {
  refused_by(attention{backend::cpu{}}, code, word, call);
}

}  // namespace testing_support
