/// @file
/// A fixed number of pages and a free list over them.
#pragma once

#include <omnisparse/core/memory.hpp>

#include <cstddef>

namespace omnisparse::inline OMNISPARSE_TARGET {

/// Page numbers [0, pages) handed out and taken back in O(1). The bookkeeping is on the host.
class page_pool {
 public:
  page_pool() noexcept = default;
  /// Takes memory for the free list of `pages` >= 0, once; `bool` is false, and the pool without
  /// pages, if that failed or the count is negative.
  explicit page_pool(int pages) noexcept
      : memory_(pages < 0 ? 0 : sizeof(int) * (static_cast<std::size_t>(pages) + 1)) {
    if (!memory_) return;
    free_ = pages_ = pages;
    // The lowest page is handed out first.
    for (int n = 0; n < pages; ++n) list()[n] = pages - 1 - n;
  }

  int pages() const noexcept { return pages_; }
  int free_pages() const noexcept { return free_; }
  explicit operator bool() const noexcept { return static_cast<bool>(memory_); }

  /// A free page, or -1.
  int take() noexcept { return free_ > 0 ? list()[--free_] : -1; }
  /// Gives back a page that was taken. What cannot have been taken is left.
  void give_back(int page) noexcept {
    if (0 <= page && page < pages_ && free_ < pages_) list()[free_++] = page;
  }

 private:
  int* list() const noexcept { return static_cast<int*>(memory_.data()); }

  buffer<host> memory_;
  int free_ = 0;
  int pages_ = 0;
};

}  // namespace omnisparse::inline OMNISPARSE_TARGET
