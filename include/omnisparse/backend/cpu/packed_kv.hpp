/// @file
/// All keys and values of a call in the layouts of the products, packed once.
#pragma once

#include <omnisparse/backend/cpu/pack.hpp>
#include <omnisparse/backend/cpu/threads.hpp>
#include <omnisparse/core/call.hpp>

#include <algorithm>
#include <cstddef>

namespace omnisparse::cpu::inline OMNISPARSE_TARGET {

/// Keys and values of every (batch, KV head), or of kept lists, in panels and padded rows.
template <class A>
struct packed_kv {
  A* panels = nullptr;
  A* values = nullptr;
  unsigned char* finite = nullptr;  ///< [slots]: all values of the slot are finite
  unsigned char* tame = nullptr;    ///< [slots]: all its keys are modest, see pack.hpp
  int slot_keys = 0;                ///< keys of a slot, whole panels
  int dim = 0;

  /// Room for `slots` times `keys` keys.
  template <class Arena>
  static packed_kv take(Arena& arena, std::size_t slots, int keys, int dim) noexcept {
    packed_kv kv;
    kv.slot_keys = padded_keys<A>(keys);
    kv.dim = dim;
    std::size_t const n = slots * static_cast<std::size_t>(kv.slot_keys);
    kv.panels = arena.template take<A>(n * static_cast<std::size_t>(dim));
    kv.values = arena.template take<A>(n * static_cast<std::size_t>(padded_dim<A>(dim)));
    kv.finite = arena.template take<unsigned char>(slots);
    kv.tame = arena.template take<unsigned char>(slots);
    return kv;
  }

  A* panels_at(std::ptrdiff_t slot, std::ptrdiff_t key = 0) const noexcept {
    return panels + (slot * slot_keys + key) * dim;
  }
  A* values_at(std::ptrdiff_t slot, std::ptrdiff_t key = 0) const noexcept {
    return values + (slot * slot_keys + key) * padded_dim<A>(dim);
  }
};

/// Flags that several threads may clear.
inline void clear_flag(unsigned char& flag) noexcept {
#if defined(_OPENMP)
#  pragma omp atomic write
#endif
  flag = 0;
}

/// Packs every key, and every value where the call writes, of the call: slot b * kv_heads + g. Keys
/// beyond a sequence's length are left out. Reads k and v once.
template <class T>
void pack_call(attention_call<T, host> const& call, int threads,
               packed_kv<accumulator_t<T>> const& kv) noexcept {
  using A = accumulator_t<T>;
  attention_shape const& shape = call.shape;
  long long const slots = static_cast<long long>(shape.batch) * shape.kv_heads;
  std::fill_n(kv.finite, slots, static_cast<unsigned char>(1));
  std::fill_n(kv.tame, slots, static_cast<unsigned char>(1));
  constexpr int step = 8 * strip<A>;
  long long const steps = ceil_div(shape.kv_tokens, step);
  parallel_for(threads, slots * steps, [&](long long n, int) {
    int const slot = static_cast<int>(n / steps), first = static_cast<int>(n % steps) * step;
    int const b = slot / shape.kv_heads, g = slot % shape.kv_heads;
    int const tokens = extent_of(shape, call.in, b).kv_tokens;
    bool finite = true, tame = true;
    for (int j = first; j < std::min(first + step, tokens); j += strip<A>) {
      int const count = std::min(strip<A>, tokens - j);
      tame &= pack_panel<A>([&](int m) { return call.k.at(b, g, j + m); }, count, shape.dim,
                            kv.panels_at(slot, j));
      if (!call.writes) continue;
      finite &= pack_values<A>([&](int m) { return call.v.at(b, g, j + m); }, count, shape.dim,
                               kv.values_at(slot, j));
    }
    if (!finite) clear_flag(kv.finite[slot]);
    if (!tame) clear_flag(kv.tame[slot]);
  });
}

}  // namespace omnisparse::cpu::inline OMNISPARSE_TARGET
