/// @file
/// Planted q, k, v in device memory.
#pragma once

#include "planted.hpp"

#include <omnisparse/attention.hpp>

#include <cstdint>

namespace bench {

template <class T, class Element>
__global__ void fill_planted(omnisparse::tensor_view<T, omnisparse::device> to, Element element) {
  std::int64_t const step = std::int64_t{gridDim.x} * blockDim.x;
  std::int64_t const count = to.size();
  for (std::int64_t n = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; n < count; n += step) {
    std::int64_t rest = n;
    int const d = static_cast<int>(rest % to.extent(3));
    rest /= to.extent(3);
    int const i = static_cast<int>(rest % to.extent(2));
    rest /= to.extent(2);
    int const h = static_cast<int>(rest % to.extent(1));
    to(static_cast<int>(rest / to.extent(1)), h, i, d) =
        static_cast<T>(element(h, static_cast<int>(rest / to.extent(1)), i, d));
  }
}

// Which tensor of a planted call, as a function of place: kernels take no extended lambdas here.
template <char Name>
struct planted_element {
  planted from;
  OMNISPARSE_HD float operator()(int h, int b, int i, int d) const {
    if constexpr (Name == 'q') return from.q(b, h, i, d);
    else if constexpr (Name == 'k') return from.k(b, h, i, d);
    else return from.v(b, h, i, d);
  }
};

/// One call's tensors, contiguous [B, H, N, D], in device memory that this owns.
template <class T>
class device_tensors {
 public:
  explicit device_tensors(planted const& from)
      : shape(from.shape),
        memory_{make(shape.q_heads, shape.q_tokens), make(shape.kv_heads, shape.kv_tokens),
                make(shape.kv_heads, shape.kv_tokens), make(shape.q_heads, shape.q_tokens)},
        lse_(sizeof(float) * static_cast<std::size_t>(shape.batch) *
             static_cast<std::size_t>(shape.q_heads) * static_cast<std::size_t>(shape.q_tokens)) {
    q = view(0, shape.q_heads, shape.q_tokens);
    k = view(1, shape.kv_heads, shape.kv_tokens);
    v = view(2, shape.kv_heads, shape.kv_tokens);
    out = view(3, shape.q_heads, shape.q_tokens);
    lse = {static_cast<float*>(lse_.data()), {shape.batch, shape.q_heads, shape.q_tokens}};
    fill_planted<<<4096, 256>>>(q, planted_element<'q'>{from});
    fill_planted<<<4096, 256>>>(k, planted_element<'k'>{from});
    fill_planted<<<4096, 256>>>(v, planted_element<'v'>{from});
    omnisparse::or_throw(omnisparse::detail::device_status(cudaDeviceSynchronize()));
  }

  /// The tensors as a stage of the backend takes them.
  omnisparse::attention_call<T, omnisparse::device> call() const {
    return {shape, q, k, v, out, lse, {}};
  }

  omnisparse::attention_shape shape;
  omnisparse::tensor_view<T, omnisparse::device> q, k, v, out;
  omnisparse::lse_view<T, omnisparse::device> lse;

 private:
  omnisparse::buffer<omnisparse::device> make(int heads, int tokens) const {
    return omnisparse::buffer<omnisparse::device>(
        sizeof(T) * static_cast<std::size_t>(shape.batch) * static_cast<std::size_t>(heads) *
        static_cast<std::size_t>(tokens) * static_cast<std::size_t>(shape.dim));
  }
  omnisparse::tensor_view<T, omnisparse::device> view(int which, int heads, int tokens) const {
    if (!memory_[which]) throw std::bad_alloc();
    return {static_cast<T*>(memory_[which].data()), {shape.batch, heads, tokens, shape.dim}};
  }

  omnisparse::buffer<omnisparse::device> memory_[4];
  omnisparse::buffer<omnisparse::device> lse_;
};

}  // namespace bench
