/// @file
/// Calls on the CUDA backend from host tensors: uploads, poisons, guards, downloads.
#pragma once

#include <omnisparse/attention.hpp>
#include <omnisparse/testing/laws.hpp>
#include <omnisparse/testing/plans.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace testing_support {

using namespace omnisparse;

inline void check_cuda(cudaError_t error) {
  REQUIRE_MESSAGE(error == cudaSuccess, std::string(cudaGetErrorString(error)));
}

inline std::string describe(attention_shape const& s, near_field const& near, mask limit,
                            std::string const& more) {
  return "B " + std::to_string(s.batch) + " H " + std::to_string(s.q_heads) + "/" +
         std::to_string(s.kv_heads) + " N " + std::to_string(s.q_tokens) + "/" +
         std::to_string(s.kv_tokens) + " D " + std::to_string(s.dim) + " window " +
         std::to_string(near.window) + " sinks " + std::to_string(near.sinks) +
         (limit == mask::full ? " full " : " causal ") + more;
}

/// Device memory full of 0xff bytes (NaN in every dtype), with a guard behind that must stay so.
class poisoned {
 public:
  explicit poisoned(std::size_t bytes) : bytes_(bytes), memory_(bytes + guard) {
    REQUIRE(memory_);
    refill();
  }
  void refill() { check_cuda(cudaMemset(memory_.data(), 0xff, bytes_ + guard)); }
  void* data() const { return memory_.data(); }
  std::size_t bytes() const { return bytes_; }
  bool guard_is_whole() const {
    std::vector<unsigned char> tail(guard);
    check_cuda(cudaMemcpy(tail.data(), static_cast<unsigned char*>(memory_.data()) + bytes_, guard,
                          cudaMemcpyDeviceToHost));
    return std::all_of(tail.begin(), tail.end(), [](unsigned char x) { return x == 0xff; });
  }

 private:
  static constexpr std::size_t guard = 1024;
  std::size_t bytes_;
  buffer<device> memory_;
};

/// How a tensor lies in memory.
enum class layout { heads_first, tokens_first, unaligned };

/// A [B, H, N, D] tensor in device memory of some layout, gaps full of NaN.
template <class T>
class device_tensor {
 public:
  device_tensor(int const (&shape)[4], layout order)
      : size_(elements(shape, order)), memory_(size_ * sizeof(T) + 16) {
    std::int64_t const row = shape[3] + gap(order);
    std::int64_t const heads = shape[1], tokens = shape[2];
    T* const first = static_cast<T*>(memory_.data()) + (order == layout::unaligned ? 1 : 0);
    view = order == layout::tokens_first
               ? tensor_view<T, device>(first, shape, {tokens * heads * row, row, heads * row, 1})
               : tensor_view<T, device>(first, shape, {heads * tokens * row, tokens * row, row, 1});
  }
  void upload(tensor_view<T const> const& x) {
    std::vector<T> bytes(size_ + 1);
    check_cuda(cudaMemcpy(bytes.data(), memory_.data(), size_ * sizeof(T), cudaMemcpyDefault));
    each(bytes, [&](T& at, int b, int h, int i, int d) { at = x(b, h, i, d); });
    check_cuda(cudaMemcpy(memory_.data(), bytes.data(), size_ * sizeof(T), cudaMemcpyDefault));
  }
  /// The elements in order; fails where a gap between rows was written.
  std::vector<T> download() const {
    std::vector<T> bytes(size_ + 1), values;
    check_cuda(cudaMemcpy(bytes.data(), memory_.data(), size_ * sizeof(T), cudaMemcpyDefault));
    T poison;
    std::memset(static_cast<void*>(&poison), 0xff, sizeof poison);
    each(bytes, [&](T& at, int, int, int, int) { values.push_back(at), at = poison; });
    bytes.pop_back();
    bool const whole = std::all_of(bytes.begin(), bytes.end(), [&](T const& x) {
      return std::memcmp(&x, &poison, sizeof x) == 0;
    });
    CHECK_MESSAGE(whole, "memory between the rows was written");
    CHECK(memory_.guard_is_whole());
    return values;
  }
  void poison() { memory_.refill(); }

  tensor_view<T, device> view;

 private:
  static int gap(layout order) { return order == layout::unaligned ? 3 : 8; }
  static std::size_t elements(int const (&s)[4], layout order) {
    return static_cast<std::size_t>(s[0]) * static_cast<std::size_t>(s[1]) *
               static_cast<std::size_t>(s[2]) * static_cast<std::size_t>(s[3] + gap(order)) +
           1;
  }
  template <class Use>
  void each(std::vector<T>& bytes, Use const& use) const {
    auto const base = view.data - static_cast<T*>(memory_.data());
    for (int b = 0; b < view.extent(0); ++b) {
      for (int h = 0; h < view.extent(1); ++h) {
        for (int i = 0; i < view.extent(2); ++i) {
          for (int d = 0; d < view.extent(3); ++d) {
            use(bytes[static_cast<std::size_t>(base + (view.at(b, h, i, d) - view.data))], b, h, i,
                d);
          }
        }
      }
    }
  }

  std::size_t size_;
  poisoned memory_;
};

/// Host lengths and segments, and the same on the device.
struct device_inputs {
  std::vector<int> q_lengths, kv_lengths;
  std::vector<segment> segments;
  inputs<host> on_host;
  inputs<device> on_device;

  explicit device_inputs(attention_shape const& s, std::vector<int> q = {},
                         std::vector<int> kv = {}, std::vector<segment> kinds = {})
      : q_lengths(std::move(q)), kv_lengths(std::move(kv)), segments(std::move(kinds)) {
    auto const fill = [&](auto& host_view, auto& device_view, auto const& values, auto& memory,
                          auto const& shape) {
      using V = typename std::decay_t<decltype(values)>::value_type;
      if (values.empty()) return;
      memory = buffer<device>(values.size() * sizeof(V));
      check_cuda(
          cudaMemcpy(memory.data(), values.data(), values.size() * sizeof(V), cudaMemcpyDefault));
      host_view = {values.data(), shape};
      device_view = {static_cast<V const*>(memory.data()), shape};
    };
    int const one[1] = {s.batch}, two[2] = {s.batch, s.kv_tokens};
    fill(on_host.q_lengths, on_device.q_lengths, q_lengths, memory_[0], one);
    fill(on_host.kv_lengths, on_device.kv_lengths, kv_lengths, memory_[1], one);
    fill(on_host.segments, on_device.segments, segments, memory_[2], two);
  }

 private:
  buffer<device> memory_[3];
};

/// One call's tensors on the device.
template <class T>
struct device_call {
  attention_shape shape;
  device_tensor<T> q, k, v, out;
  buffer<device> lse_memory;
  lse_view<T, device> lse;

  explicit device_call(testing::tensors<T> const& t, layout order = layout::heads_first)
      : shape(t.shape),
        q({shape.batch, shape.q_heads, shape.q_tokens, shape.dim}, order),
        k({shape.batch, shape.kv_heads, shape.kv_tokens, shape.dim}, order),
        v({shape.batch, shape.kv_heads, shape.kv_tokens, shape.dim}, order),
        out({shape.batch, shape.q_heads, shape.q_tokens, shape.dim}, order),
        lse_memory(sizeof(float) * static_cast<std::size_t>(rows()) + 4) {
    lse = {static_cast<float*>(lse_memory.data()), {shape.batch, shape.q_heads, shape.q_tokens}};
    upload(t);
  }
  void upload(testing::tensors<T> const& t) {
    q.upload(t.q_view());
    k.upload(t.k_view());
    v.upload(t.v_view());
    clear();
  }
  void clear() {
    out.poison();
    check_cuda(cudaMemset(lse_memory.data(), 0xff, lse_memory.bytes()));
  }
  /// The tensors as a stage of the backend takes them.
  attention_call<T, device> call(inputs<device> const& in = {}) const {
    return {shape, q.view, k.view, v.view, out.view, lse, in};
  }
  std::int64_t rows() const { return std::int64_t{shape.batch} * shape.q_heads * shape.q_tokens; }
  std::vector<float> lses() const {
    std::vector<float> values(static_cast<std::size_t>(rows()));
    check_cuda(
        cudaMemcpy(values.data(), lse.data, values.size() * sizeof(float), cudaMemcpyDefault));
    return values;
  }
};

/// A host plan's twin on the device.
inline attention_plan<device> to_device(plan_view<host> const& plan) {
  attention_plan<device> twin(plan.shape, {plan.chunk_rows}, plan.capacity);
  REQUIRE(twin);
  REQUIRE(copy_plan(twin.view(), plan).ok());
  return twin;
}

/// Compares the outputs of a finished call with those of the reference.
template <class T>
void check_outputs(device_call<T> const& call, testing::result<T> const& oracle,
                   std::string const& what) {
  auto const d = testing::compare(call.out.download(), oracle.out);
  CHECK_MESSAGE(testing::within_rule<T>(d),
                what << ": largest " << d.largest << " cosine " << d.cosine);
  auto const lses = call.lses();
  double worst = 0;
  for (std::size_t n = 0; n < lses.size(); ++n) {
    double const x = static_cast<double>(lses[n]), y = static_cast<double>(oracle.lse[n]);
    if (x == y) continue;
    double const off = std::abs(x - y) / (1 + std::abs(y));
    worst = off <= worst ? worst : off;  // NaN counts
    if (!(off <= 1e30)) worst = 1e30;
  }
  CHECK_MESSAGE(worst <= 1e-5, what << ": lse off by " << worst);
}

}  // namespace testing_support
