/// @file
/// Do two strided views share an element? Asked of addresses alone, host and device alike.
#pragma once

#include <omnisparse/core/math.hpp>
#include <omnisparse/core/status.hpp>
#include <omnisparse/core/tensor_view.hpp>

#include <cstddef>
#include <cstdint>

namespace omnisparse::detail::inline OMNISPARSE_TARGET {

// Strides whose farthest element lies so far away that addresses could wrap are nobody's layout.
template <class V>
constexpr bool strides_fit(V const& view) noexcept {
  constexpr double most = 0x1p56;  // bytes, over all dimensions together
  double reach = sizeof(typename V::element_type);
  for (std::size_t d = 0; d < V::rank; ++d) {
    if (view.extents[d] <= 0) return true;
    double const step = static_cast<double>(view.strides[d]) * sizeof(typename V::element_type);
    reach += (view.extents[d] - 1) * (step < 0 ? -step : step);
  }
  return reach <= most;
}

// Numbers sum(step_n x_n), each x_n from its own range: is one of them a given number?
class combinations {
 public:
  // Steps are not 0. Equal steps are one: what q and out of one buffer differ by then stands alone.
  void add(std::int64_t step, std::int64_t low, std::int64_t high) noexcept {
    if (step < 0) {
      step = -step;
      std::int64_t const swapped = -low;
      low = -high;
      high = swapped;
    }
    int n = 0;
    while (n < count_ && terms_[n].step > step) ++n;
    if (n < count_ && terms_[n].step == step) {
      terms_[n].low += low;
      terms_[n].high += high;
      return;
    }
    for (int m = count_++; m > n; --m) terms_[m] = terms_[m - 1];
    terms_[n] = {step, low, high};
  }

  // Is `target` reached, by factors that are not all 0 where `moved`? Where the search grows long,
  // which takes strides that interleave without pattern, the answer is yes.
  bool reach(std::int64_t target, bool moved) const noexcept {
    int patience = 4096;
    return search(0, target, moved, patience);
  }

 private:
  struct term {
    std::int64_t step, low, high;
  };

  bool search(int n, std::int64_t rest, bool moved, int& patience) const noexcept {
    if (n == count_) return rest == 0 && !moved;
    std::int64_t least = 0, most = 0;  // of the smaller steps together
    for (int m = n + 1; m < count_; ++m) {
      least += terms_[m].step * terms_[m].low;
      most += terms_[m].step * terms_[m].high;
    }
    auto const floored = [](std::int64_t x, std::int64_t step) {
      return x / step - (x % step < 0 ? 1 : 0);
    };
    term const& t = terms_[n];
    std::int64_t const first = larger(t.low, -floored(most - rest, t.step));
    std::int64_t const last = smaller(t.high, floored(rest - least, t.step));
    for (std::int64_t x = first; x <= last; ++x) {
      if (--patience < 0) return true;
      if (search(n + 1, rest - t.step * x, moved && x == 0, patience)) return true;
    }
    return false;
  }

  term terms_[10] = {};  // two views of rank 4, and the bytes of their elements
  int count_ = 0;
};

// The bytes of a view, or of a block of memory: runs of neighbouring bytes at regular steps.
class footprint {
 public:
  constexpr footprint() noexcept = default;

  footprint(void const* data, std::size_t bytes) noexcept
      : base_(reinterpret_cast<std::uintptr_t>(data)) {
    if (data == nullptr || bytes == 0) return;
    empty_ = false;
    add(1, static_cast<std::int64_t>(smaller(bytes, std::size_t{1} << 56)));
  }

  // The strides of `view` fit.
  template <class T, class Space, std::size_t Rank>
  explicit footprint(tensor_view<T, Space, Rank> const& view) noexcept
      : base_(reinterpret_cast<std::uintptr_t>(view.data)) {
    static_assert(Rank <= 4);
    if (view.is_null() || view.size() == 0) return;
    empty_ = false;
    constexpr std::int64_t element = sizeof(T);
    std::int64_t run = element;
    for (std::size_t d = 0; d < Rank; ++d) {
      std::int64_t const extent = view.extents[d], step = view.strides[d];
      if (extent == 1) continue;
      if (step == 0) repeats_ = true;
      else if (d + 1 == Rank && step == 1) run *= extent;
      else add(step * element, extent);
    }
    add(1, run);
  }

  // Does a byte belong to both?
  bool meets(footprint const& other) const noexcept {
    if (empty_ || other.empty_) return false;
    auto const apart = static_cast<std::int64_t>(other.base_ - base_);
    if (end_ <= apart + other.begin_ || apart + other.end_ <= begin_) return false;
    combinations differences;
    for (int n = 0; n < rank_; ++n) differences.add(steps_[n], 0, counts_[n] - 1);
    for (int n = 0; n < other.rank_; ++n) differences.add(other.steps_[n], 1 - other.counts_[n], 0);
    return differences.reach(apart, false);
  }

  // Do two elements coincide?
  bool meets_itself() const noexcept {
    if (repeats_) return true;
    bool nested = true;  // each step beyond all that the later ones reach: the usual layouts
    std::int64_t reach = 0;
    for (int n = rank_ - 1; n >= 0; --n) {
      std::int64_t const step = steps_[n] < 0 ? -steps_[n] : steps_[n];
      nested = nested && step > reach;
      reach += step * (counts_[n] - 1);
    }
    if (nested) return false;
    combinations differences;
    for (int n = 0; n < rank_; ++n) {
      for (int m = 0; m < n; ++m) {  // a step there, and one back in the other dimension
        if (steps_[m] == steps_[n] || steps_[m] == -steps_[n]) return true;
      }
      differences.add(steps_[n], 1 - counts_[n], counts_[n] - 1);
    }
    return differences.reach(0, true);
  }

 private:
  void add(std::int64_t step, std::int64_t count) noexcept {
    if (count == 1) return;
    steps_[rank_] = step;
    counts_[rank_++] = count;
    (step < 0 ? begin_ : end_) += step * (count - 1);
  }

  std::uintptr_t base_ = 0;           // of the element whose indices are all 0
  std::int64_t begin_ = 0, end_ = 1;  // first byte, and one beyond the last, from there
  std::int64_t steps_[5] = {};        // bytes, not 0
  std::int64_t counts_[5] = {};       // > 1
  int rank_ = 0;
  bool repeats_ = false;  // by a stride of 0
  bool empty_ = true;
};

// What one call reads, what it writes and what it may overwrite, to be kept apart. Reads may share
// memory with each other: q, k and v are often three views of one buffer. So may a view that is
// written lie in the buffer of one that is read, as long as no element belongs to both. Views are
// referred to until `check`; strides are looked at only where the ranges of two of them cross.
class memory_of_call {
 public:
  template <class V>
  void reads(V const& view) noexcept {
    reads_[read_count_++] = piece(view);
  }
  void reads(void const* data, std::size_t bytes) noexcept {
    reads_[read_count_++] = piece(data, bytes);
  }
  template <class V>
  void writes(V const& view) noexcept {
    repeats_ = repeats_ || footprint(view).meets_itself();
    writes_[write_count_++] = piece(view);
  }
  void writes(void const* data, std::size_t bytes) noexcept {
    writes_[write_count_++] = piece(data, bytes);
  }
  void works_in(void const* data, std::size_t bytes) noexcept { workspace_ = piece(data, bytes); }

  // `why` is the sentence for an output that is not alone.
  status check(char const* why) const noexcept {
    bool shared = repeats_, works_elsewhere = true;
    for (int n = 0; n < write_count_; ++n) {
      for (int m = 0; m < read_count_; ++m) shared = shared || writes_[n].meets(reads_[m]);
      for (int m = 0; m < n; ++m) shared = shared || writes_[n].meets(writes_[m]);
      works_elsewhere = works_elsewhere && !workspace_.meets(writes_[n]);
    }
    if (shared) return {status_code::invalid_view, why};
    for (int m = 0; m < read_count_; ++m) {
      works_elsewhere = works_elsewhere && !workspace_.meets(reads_[m]);
    }
    if (works_elsewhere) return {};
    return {status_code::invalid_view,
            "omnisparse: the workspace shares memory with what the call reads or writes: give it "
            "memory of its own"};
  }

 private:
  // Addresses [begin, end), and how the bytes between them are found.
  struct piece {
    std::uintptr_t begin = 0, end = 0;
    void const* view = nullptr;
    footprint (*of_view)(void const*) noexcept = nullptr;

    constexpr piece() noexcept = default;
    piece(void const* data, std::size_t bytes) noexcept
        : begin(reinterpret_cast<std::uintptr_t>(data)),
          end(data == nullptr ? begin : begin + smaller(bytes, ~std::uintptr_t{0} - begin)) {}
    template <class T, class Space, std::size_t Rank>
    explicit piece(tensor_view<T, Space, Rank> const& v) noexcept
        : view(&v), of_view([](void const* x) noexcept {
            return footprint(*static_cast<tensor_view<T, Space, Rank> const*>(x));
          }) {
      if (v.is_null()) return;
      std::int64_t low = 0, high = 1;
      for (std::size_t d = 0; d < Rank; ++d) {
        if (v.extents[d] == 0) return;
        (v.strides[d] < 0 ? low : high) += (v.extents[d] - 1) * v.strides[d];
      }
      begin = end = reinterpret_cast<std::uintptr_t>(v.data);
      begin += static_cast<std::uintptr_t>(low) * sizeof(T);
      end += static_cast<std::uintptr_t>(high) * sizeof(T);
    }

    footprint whole() const noexcept {
      return view != nullptr ? of_view(view)
                             : footprint(reinterpret_cast<void const*>(begin), end - begin);
    }
    bool meets(piece const& other) const noexcept {
      return begin < other.end && other.begin < end && whole().meets(other.whole());
    }
  };

  piece reads_[10], writes_[4], workspace_;
  int read_count_ = 0, write_count_ = 0;
  bool repeats_ = false;
};

}  // namespace omnisparse::detail::inline OMNISPARSE_TARGET
