/// @file
/// The scratch memory of a call: a view that calls take, and an owner for convenience.
#pragma once

#include <omnisparse/core/math.hpp>
#include <omnisparse/core/memory.hpp>

#include <cstddef>
#include <cstdint>

namespace omnisparse {

/// Scratch memory that a call may overwrite. Contents mean nothing between calls.
template <class Space = host>
struct workspace_view {
  void* data = nullptr;
  std::size_t bytes = 0;
};

/// Owns a workspace. Allocates in the constructor, once; `view()` is empty if that failed.
template <class Space = host>
class workspace {
 public:
  workspace() noexcept = default;
  /// Takes `bytes`, as `workspace_bytes(shape)` of a functor counts them.
  explicit workspace(std::size_t bytes) noexcept : memory_(bytes) {}

  workspace_view<Space> view() const noexcept { return {memory_.data(), memory_.bytes()}; }
  operator workspace_view<Space>() const noexcept { return view(); }
  std::size_t bytes() const noexcept { return memory_.bytes(); }

 private:
  buffer<Space> memory_;
};

namespace detail {
inline namespace OMNISPARSE_TARGET {

// Hands out aligned pieces of a workspace, or only counts them when made from nothing: the same
// code answers `workspace_bytes` and lays the memory out, so the two cannot disagree.
class arena {
 public:
  static constexpr std::size_t alignment = 256;

  constexpr arena() noexcept = default;
  arena(void* data, std::size_t bytes) noexcept : data_(static_cast<std::byte*>(data)) {
    auto const address = reinterpret_cast<std::uintptr_t>(data);
    used_ = static_cast<std::size_t>((alignment - address % alignment) % alignment);
    end_ = bytes;
  }

  // Room for `count` objects of type T; null while counting or when the memory has run out.
  template <class T>
  T* take(std::size_t count) noexcept {
    std::size_t const size = round_up(count * sizeof(T), alignment);
    std::byte* const p = data_ != nullptr && used_ + size <= end_ ? data_ + used_ : nullptr;
    used_ += size;
    return reinterpret_cast<T*>(p);
  }

  // Bytes a workspace must have for all that was taken, wherever it starts.
  std::size_t needed() const noexcept { return data_ == nullptr ? used_ + alignment : used_; }
  std::size_t used() const noexcept { return used_; }
  bool fits() const noexcept { return used_ <= end_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t used_ = 0;
  std::size_t end_ = 0;
};

}  // namespace OMNISPARSE_TARGET
}  // namespace detail
}  // namespace omnisparse
