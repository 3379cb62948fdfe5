/// @file
/// A pointer with extents and strides, and the memory space it points into as part of its type.
#pragma once

#include <omnisparse/core/config.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace omnisparse {

/// Memory that the CPU reads.
struct host {};
/// Memory that the GPU reads.
struct device {};

/// A strided view of a dense tensor in `Space`; it owns nothing and copies freely into kernels.
/// Rank 4 is [batch, head, token, D] for q, k, v and out, rank 3 is [batch, head, token] for lse.
/// Strides are in elements, 64 bits wide, of either sign, 0 to repeat an input; the last dimension
/// of q, k, v and out is contiguous. A default-made view is null and stands for "not given"; one
/// with memory or extents is given. A host view does not convert to a device view.
template <class T, class Space = host, std::size_t Rank = 4>
struct tensor_view {
  static constexpr std::size_t rank = Rank;
  using element_type = T;
  using value_type = std::remove_const_t<T>;
  using space = Space;

  T* data = nullptr;
  int extents[Rank] = {};
  std::int64_t strides[Rank] = {};

  constexpr tensor_view() noexcept = default;

  /// A contiguous row-major tensor.
  OMNISPARSE_HD constexpr tensor_view(T* pointer, int const (&shape)[Rank]) noexcept
      : data(pointer) {
    std::int64_t step = 1;
    for (std::size_t d = Rank; d-- > 0;) {
      extents[d] = shape[d];
      strides[d] = step;
      // Unsigned: extents that no call takes must not be undefined behaviour before it refuses
      // them.
      step = static_cast<std::int64_t>(static_cast<std::uint64_t>(step) *
                                       static_cast<std::uint64_t>(shape[d]));
    }
  }

  /// Any strides, in elements; the last must be 1 (checked by the calls that read the view).
  OMNISPARSE_HD constexpr tensor_view(T* pointer, int const (&shape)[Rank],
                                      std::int64_t const (&steps)[Rank]) noexcept
      : data(pointer) {
    for (std::size_t d = 0; d < Rank; ++d) {
      extents[d] = shape[d];
      strides[d] = steps[d];
    }
  }

  /// A view of T converts to a view of T const in the same space.
  template <class C>
    requires(std::is_same_v<C, T const> && !std::is_const_v<T>)
  OMNISPARSE_HD constexpr operator tensor_view<C, Space, Rank>() const noexcept {
    return {data, extents, strides};
  }

  OMNISPARSE_HD constexpr int extent(int dimension) const noexcept { return extents[dimension]; }
  OMNISPARSE_HD constexpr std::int64_t stride(int dimension) const noexcept {
    return strides[dimension];
  }
  OMNISPARSE_HD constexpr bool is_null() const noexcept { return data == nullptr; }
  /// Was it given? A default-made view was not; one without memory but with extents was, and is
  /// refused unless it is empty.
  OMNISPARSE_HD constexpr bool is_given() const noexcept {
    bool given = data != nullptr;
    for (std::size_t d = 0; d < Rank; ++d) given = given || extents[d] != 0;
    return given;
  }
  /// Elements: 0 where an extent is 0 or negative, at most 2^63 - 1.
  OMNISPARSE_HD constexpr std::int64_t size() const noexcept {
    constexpr std::int64_t most = 0x7fffffffffffffff;
    std::int64_t n = 1;
    for (std::size_t d = 0; d < Rank; ++d) {
      if (extents[d] <= 0) return 0;
    }
    for (std::size_t d = 0; d < Rank; ++d) {
      bool const fits = n >> 32 == 0 || n <= most / extents[d];
      n = fits ? n * extents[d] : most;
    }
    return n;
  }

  /// The address of an element; indices left out are 0, so `at(b, h, i)` is a row [D] of rank 4.
  template <class... I>
  OMNISPARSE_HD constexpr T* at(I... index) const noexcept {
    static_assert(sizeof...(I) <= Rank, "omnisparse: more indices than the view has dimensions");
    std::int64_t const indices[Rank] = {static_cast<std::int64_t>(index)...};
    std::int64_t offset = 0;
    for (std::size_t d = 0; d < Rank; ++d) offset += indices[d] * strides[d];
    return data + offset;
  }

  /// The element at an index per dimension. Not checked.
  template <class... I>
  OMNISPARSE_HD constexpr T& operator()(I... index) const noexcept {
    static_assert(sizeof...(I) == Rank, "omnisparse: one index for each dimension");
    return *at(index...);
  }
};

template <class T, std::size_t Rank>
tensor_view(T*, int const (&)[Rank]) -> tensor_view<T, host, Rank>;
template <class T, std::size_t Rank>
tensor_view(T*, int const (&)[Rank], std::int64_t const (&)[Rank]) -> tensor_view<T, host, Rank>;

/// A [batch, head, token, D] view of memory laid out as [batch, token, head, D], without a copy.
/// `shape` is [batch, head, token, D].
template <class Space = host, class T>
OMNISPARSE_HD constexpr tensor_view<T, Space, 4> view_tokens_first(T* pointer,
                                                                   int const (&shape)[4]) noexcept {
  // The contiguous strides of [batch, token, head, D], two of them exchanged.
  tensor_view<T, Space, 4> const stored(pointer, {shape[0], shape[2], shape[1], shape[3]});
  return {pointer, shape, {stored.strides[0], stored.strides[2], stored.strides[1], 1}};
}

}  // namespace omnisparse
