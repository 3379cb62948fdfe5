// Two keys with logits of 0 and -1/2: a softmax that can be written down, whatever the flags allow.
#include <omnisparse/attention.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

int main() {
  using namespace omnisparse;
  std::vector<float> q(8, 0.f), k(16, 0.f), v(16, 0.f), out(8), lse(1);
  q[0] = std::sqrt(8.f), k[8] = -0.5f, v[8] = 1;
  tensor_view const qs(q.data(), {1, 1, 1, 8}), ks(k.data(), {1, 1, 2, 8}),
      vs(v.data(), {1, 1, 2, 8}), outs(out.data(), {1, 1, 1, 8});
  auto const attend = attention{backend::cpu{}};
  workspace<> memory(attend.workspace_bytes({1, 1, 1, 1, 2, 8}));
  if (!attend(qs, ks, vs, outs, lse_view<float>(lse.data(), {1, 1, 1}), memory).ok()) return 2;
  std::printf("out %.6f for 0.377541, lse %.6f for 0.474077\n", static_cast<double>(out[0]),
              static_cast<double>(lse[0]));
  return std::fabs(out[0] - 0.377541f) < 1e-5f && std::fabs(lse[0] - 0.474077f) < 1e-5f ? 0 : 1;
}
