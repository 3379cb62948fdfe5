// The same study on the GPU: tensors and plan go there, outputs and plan come back.
#include "cuda.hpp"

#include <chrono>
#include <stdexcept>
#include <string>
#include <utility>

namespace study {
namespace {

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
  }
}

/// A tensor in device memory of its own.
template <class T, int Rank>
struct on_device {
  explicit on_device(int const (&extents)[Rank]) : memory(count(extents) * sizeof(T)) {
    if (!memory) throw std::runtime_error("there is not enough memory on the GPU");
    view = {static_cast<T*>(memory.data()), extents};
  }
  on_device(int const (&extents)[Rank], std::vector<T> const& values) : on_device(extents) {
    check(cudaMemcpy(view.data, values.data(), values.size() * sizeof(T), cudaMemcpyDefault));
  }
  std::vector<T> values() const {
    std::vector<T> values(static_cast<std::size_t>(view.size()));
    check(cudaMemcpy(values.data(), view.data, values.size() * sizeof(T), cudaMemcpyDefault));
    return values;
  }
  static std::size_t count(int const (&extents)[Rank]) {
    std::size_t n = 1;
    for (int const extent : extents) n *= static_cast<std::size_t>(extent);
    return n;
  }

  buffer<device> memory;
  tensor_view<T, device, Rank> view;
};

/// Seconds of the second of two runs of `work`: the first loads kernels.
template <class Work>
double seconds_of(Work const& work) {
  using clock = std::chrono::steady_clock;
  clock::time_point start;
  for (int n = 0; n < 2; ++n) {
    start = clock::now();
    or_throw(work());
    check(cudaDeviceSynchronize());
  }
  return std::chrono::duration<double>(clock::now() - start).count();
}

template <class T, class Attention>
outcome<T> measure(Attention const& attend, planning by, tensors<T> const& t,
                   attention_plan<host> given) {
  attention_shape const& s = t.shape;
  or_throw(attend.template can_run<T>(s));
  int const q_extents[4] = {s.batch, s.q_heads, s.q_tokens, s.dim};
  int const kv_extents[4] = {s.batch, s.kv_heads, s.kv_tokens, s.dim};
  int const row_extents[3] = {s.batch, s.q_heads, s.q_tokens};
  on_device<T, 4> const q(q_extents, t.q), k(kv_extents, t.k), v(kv_extents, t.v), out(q_extents);
  on_device<float, 3> const lse(row_extents);

  outcome<T> got;
  got.near = attend.policies().near;
  got.limit = attend.policies().limit;
  got.plan =
      by == planning::given ? std::move(given) : attention_plan<host>(s, attend.policies().rows);
  if (!got.plan) throw std::runtime_error("there is not enough memory for the plan");
  if (by == planning::everything) fill_dense(got.plan);
  plan_view<host> const on_host = got.plan;
  attention_plan<device> const plan(s, {on_host.chunk_rows}, on_host.capacity);
  auto const run = attend.with(chunk{on_host.chunk_rows});
  workspace<device> const memory(run.template workspace_bytes<T>(s));
  if (!plan || memory.bytes() == 0) {
    throw std::runtime_error("there is not enough memory on the GPU");
  }
  if (by == planning::by_policies) {
    got.plan_seconds = seconds_of([&] { return run.plan(q.view, k.view, plan, memory); });
    or_throw(copy_plan(on_host, plan.view()));
  } else {
    or_throw(copy_plan(plan.view(), on_host));
  }
  got.attend_seconds =
      seconds_of([&] { return run.run(q.view, k.view, v.view, plan, out.view, lse.view, memory); });
  got.out = out.values();
  got.lse = lse.values();
  return got;
}

}  // namespace

template <class T>
outcome<T> run_on_gpu(options const& o, tensors<T> const& t, attention_plan<host> given) {
  outcome<T> got;
  compose(backend::cuda{}, o, t.shape.kv_tokens,
          [&](auto const& attend, planning by) { got = measure(attend, by, t, std::move(given)); });
  return got;
}

template outcome<float> run_on_gpu(options const&, tensors<float> const&, attention_plan<host>);
template outcome<omnisparse::half> run_on_gpu(options const&, tensors<omnisparse::half> const&,
                                              attention_plan<host>);
template outcome<bfloat16> run_on_gpu(options const&, tensors<bfloat16> const&,
                                      attention_plan<host>);

}  // namespace study
