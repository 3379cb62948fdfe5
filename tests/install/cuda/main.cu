// A user's policy in a kernel: the same struct that the CPU runs.
#include <omnisparse/core/policy.hpp>

#include <cstdio>

namespace mine {
/// Every `stride`-th position looks far.
struct every_nth {
  using observes = omnisparse::observation::nothing;
  int stride = 4;
  OMNISPARSE_HD constexpr bool keeps(observes, omnisparse::query_row row) const noexcept {
    return row.position % stride == 0;
  }
};
static_assert(omnisparse::query_selector<every_nth>);
}  // namespace mine

template <omnisparse::query_selector Selector>
__global__ void ask(Selector selector, int rows, int* active) {
  for (int i = 0; i < rows; ++i) *active += selector.keeps({}, {i, 0});
}

int main() {
  int* active = nullptr;
  if (cudaMallocManaged(&active, sizeof(int)) != cudaSuccess) {
    std::printf("compiled; there is no GPU to run it on\n");
    return 0;
  }
  *active = 0;
  ask<<<1, 1>>>(mine::every_nth{}, 64, active);
  bool const right = cudaDeviceSynchronize() == cudaSuccess && *active == 16;
  std::printf("active %d of 64\n", *active);
  cudaFree(active);
  return right ? 0 : 1;
}
