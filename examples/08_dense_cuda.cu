// Dense causal attention on the GPU: the CPU program with another backend and device views.
#include "common/gpu.cuh"

int main() {
  using namespace omnisparse;
  if (!gpu::is_here()) return 77;
  attention_shape const shape{
      .batch = 1, .q_heads = 8, .kv_heads = 2, .q_tokens = 512, .kv_tokens = 512, .dim = 64};
  gpu::tensor<bfloat16> const q({1, 8, 512, 64},
                                std::vector<bfloat16>(8 * 512 * 64, bfloat16(0.1f)));
  gpu::tensor<bfloat16> const k({1, 2, 512, 64},
                                std::vector<bfloat16>(2 * 512 * 64, bfloat16(0.2f)));
  gpu::tensor<bfloat16> const v({1, 2, 512, 64},
                                std::vector<bfloat16>(2 * 512 * 64, bfloat16(0.25f)));
  gpu::tensor<bfloat16> const out({1, 8, 512, 64});

  auto const attend = attention{backend::cuda{}};
  status const can = attend.can_run<bfloat16>(shape);
  std::printf("%s\n", can.message);  // which kernels run, and why
  or_throw(can);

  workspace<device> const memory(attend.workspace_bytes<bfloat16>(shape));
  cudaStream_t stream = nullptr;  // any stream of yours; the call only enqueues
  or_throw(attend(q.view, k.view, v.view, out.view, memory, {}, stream));

  float const first = static_cast<float>(out.values()[0]);
  std::printf("out[0] %.3f (all values are 0.25)\n", static_cast<double>(first));
  return first > 0.249f && first < 0.251f ? 0 : 1;
}
