// One instantiation of the whole CUDA prefill, in one call and by its stages: what a user's file
// costs to compile. tests/kernels times it and reads what ptxas says about its kernels.
#include <omnisparse/presets.hpp>

using namespace omnisparse;

using tensor = tensor_view<bfloat16 const, device>;

/// The composition that models without training for sparsity use, for one dtype.
status prefill(tensor const& q, tensor const& k, tensor const& v,
               tensor_view<bfloat16, device> const& out, workspace_view<device> memory,
               cudaStream_t stream) {
  auto const attend = presets::local_first(backend::cuda{}, k.extent(2));
  return attend(q, k, v, out, memory, {}, stream);
}

status prefill_by_stages(tensor const& q, tensor const& k, tensor const& v,
                         tensor_view<bfloat16, device> const& out, plan_view<device> const& plan,
                         workspace_view<device> memory, cudaStream_t stream) {
  auto const attend = presets::local_first(backend::cuda{}, k.extent(2));
  status const planned = attend.plan(q, k, plan, memory, {}, stream);
  return planned.ok() ? attend.run(q, k, v, plan, out, memory, {}, stream) : planned;
}
