/// @file
/// How an owning type takes memory in a space. Each space specialises `memory` once.
#pragma once

#include <omnisparse/core/tensor_view.hpp>

#include <cstddef>
#include <cstring>
#include <new>

namespace omnisparse {

/// Allocation in `Space`: `allocate(bytes)` returns zeroed memory aligned to 256 bytes, or null;
/// `release(pointer)` takes null too. Blocking; for constructors, never inside a call.
template <class Space>
struct memory;

template <>
struct memory<host> {
  static constexpr std::size_t alignment = 256;
  static constexpr std::size_t most = std::size_t{1} << 47;  ///< what addresses can tell apart

  static void* allocate(std::size_t bytes) noexcept {
    if (bytes > most) return nullptr;
    void* const p = ::operator new(bytes, std::align_val_t{alignment}, std::nothrow);
    if (p != nullptr) std::memset(p, 0, bytes);
    return p;
  }
  static void release(void* p) noexcept { ::operator delete(p, std::align_val_t{alignment}); }
};

/// Owns `bytes()` of zeroed memory in `Space`; moves, never copies. Empty after a failed
/// allocation: test with `bool`.
template <class Space>
class buffer {
 public:
  buffer() noexcept = default;
  explicit buffer(std::size_t bytes) noexcept
      : data_(bytes == 0 ? nullptr : memory<Space>::allocate(bytes)),
        bytes_(data_ == nullptr ? 0 : bytes) {}
  buffer(buffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
    other.bytes_ = 0;
  }
  buffer& operator=(buffer&& other) noexcept {
    if (this != &other) {
      memory<Space>::release(data_);
      data_ = other.data_;
      bytes_ = other.bytes_;
      other.data_ = nullptr;
      other.bytes_ = 0;
    }
    return *this;
  }
  buffer(buffer const&) = delete;
  buffer& operator=(buffer const&) = delete;
  ~buffer() { memory<Space>::release(data_); }

  void* data() const noexcept { return data_; }
  std::size_t bytes() const noexcept { return bytes_; }
  explicit operator bool() const noexcept { return data_ != nullptr; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace omnisparse
