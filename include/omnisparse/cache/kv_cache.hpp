/// @file
/// The paged cache: tokens of many sequences in one pool, a page table for each KV head.
#pragma once

#include <omnisparse/cache/kv_cache_ref.hpp>
#include <omnisparse/cache/page_pool.hpp>
#include <omnisparse/core/backend.hpp>
#include <omnisparse/core/check_shape.hpp>
#include <omnisparse/core/dtype.hpp>
#include <omnisparse/core/overlap.hpp>
#include <omnisparse/core/status.hpp>
#include <omnisparse/core/workspace.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace omnisparse {

/// How large a cache is. One cache may hold all layers of a model: a sequence is whatever has
/// tokens of its own.
struct kv_cache_options {
  int sequences = 1;      ///< in use at a time, >= 1
  int kv_heads = 1;       ///< >= 1
  int dim = 64;           ///< in [1, 65536]
  int max_tokens = 8192;  ///< most tokens, text and visual together, that each KV head of a
                          ///< sequence may store, in [1, 2^30]
  int pages = 0;          ///< in the pool; 0: enough for every sequence in full
  int page_tokens = 64;   ///< in [1, 2^20], and dim times it at most 2^30
  int sink_keys = 1;      ///< first keys that the decode classifier's sink pools, >= 1
};

/// Can there be a cache of these options? ok, or the sentence that says why not. Memory is not
/// asked for.
constexpr status check_cache(kv_cache_options const& o) noexcept {
  auto const refuse = [](char const* why) { return status{status_code::invalid_option, why}; };
  if (o.sequences < 1 || o.kv_heads < 1 || o.dim < 1 || o.max_tokens < 1 || o.page_tokens < 1 ||
      o.pages < 0 || o.sink_keys < 1) {
    return refuse(
        "omnisparse: a cache has at least one sequence, KV head, element, token, page slot and "
        "sink key, and pages >= 0");
  }
  if (o.max_tokens > 1 << 30 || o.page_tokens > 1 << 20 || o.dim > detail::most_dim ||
      std::int64_t{o.dim} * o.page_tokens > 1 << 30) {
    return refuse(
        "omnisparse: a cache has at most 2^30 max_tokens, 2^20 page_tokens, a dim of 65536 and "
        "2^30 elements a page: take smaller ones");
  }
  if (!detail::rows_fit(o.sequences, o.kv_heads, 1)) {
    return refuse(
        "omnisparse: a cache has at most 2^28 sequences times KV heads: make several caches");
  }
  // A head's text and visual lanes may each leave one page partly filled.
  std::int64_t const slots = std::int64_t{o.sequences} * o.kv_heads;
  std::int64_t const full = ceil_div(o.max_tokens, o.page_tokens) + 1;
  if (o.pages == 0 && full > 0x7fffffff / slots) {
    return refuse(
        "omnisparse: a cache that holds every sequence in full needs more than 2^31 - 1 pages: "
        "say how many as 'pages', take larger page_tokens, or make several caches");
  }
  return {};
}

/// Owns a paged cache. Allocates in the constructor, once; `bool` is false if the options make no
/// sense (`check_cache`) or memory was not to be had. Every call is all or nothing: a full pool
/// refuses and nothing is lost. Not for concurrent calls that change it.
template <class Backend, class T>
class kv_cache {
  using space = typename Backend::space;
  static_assert(std::is_same_v<space, host>,
                "omnisparse: this build has no cache in that memory space: use a host backend");

 public:
  explicit kv_cache(kv_cache_options const& o) noexcept {
    if (!check_cache(o).ok()) return;
    ref_.sequences = o.sequences, ref_.kv_heads = o.kv_heads, ref_.dim = o.dim;
    ref_.page_tokens = o.page_tokens, ref_.sink_keys = o.sink_keys;
    ref_.lane_pages = ceil_div(o.max_tokens, o.page_tokens);
    auto const count = [](int n) { return static_cast<std::size_t>(n); };
    std::size_t const slots = count(o.sequences) * count(o.kv_heads);
    max_tokens_ = o.max_tokens;
    int const pages = o.pages > 0 ? o.pages : o.sequences * o.kv_heads * (ref_.lane_pages + 1);
    std::size_t const tokens = count(pages) * count(o.page_tokens);
    std::size_t const page_memory = tokens * count(o.dim) * sizeof(T) + kv_cache_slack;
    pool_ = page_pool(pages);
    keys_ = buffer<space>(page_memory);
    values_ = buffer<space>(page_memory);
    positions_ = buffer<space>(tokens * sizeof(int));
    tables_ = buffer<space>(2 * slots * count(ref_.lane_pages) * sizeof(int));
    counts_ = buffer<space>((2 * slots + count(o.sequences)) * sizeof(int));
    sums_ = buffer<space>(2 * slots * count(o.dim) * sizeof(double));
    if (!pool_ || !keys_ || !values_ || !positions_ || !tables_ || !counts_ || !sums_) {
      ref_.sequences = 0;
      return;
    }
    ref_.keys = static_cast<T*>(keys_.data());
    ref_.values = static_cast<T*>(values_.data());
    ref_.positions = static_cast<int*>(positions_.data());
    ref_.tables = static_cast<int*>(tables_.data());
    ref_.stored = static_cast<int*>(counts_.data());
    ref_.appended = ref_.stored + 2 * slots;
    ref_.key_sums = static_cast<double*>(sums_.data());
    for (int s = 0; s < o.sequences; ++s) ref_.appended[s] = -1;
  }

  explicit operator bool() const noexcept { return ref_.sequences > 0; }
  kv_cache_ref<space, T> const& ref() const noexcept { return ref_; }

  /// Starts a sequence; `sequence` becomes its number, one that is not in use.
  status add(int& sequence) noexcept {
    for (int s = 0; s < ref_.sequences; ++s) {
      if (ref_.appended[s] >= 0) continue;
      ref_.appended[s] = 0;
      for (std::int64_t n = ref_.lane(s, 0, segment::text); n < ref_.lane(s + 1, 0, segment::text);
           ++n) {
        ref_.stored[n] = 0;
      }
      for (std::int64_t n = 0; n < std::int64_t{2} * ref_.kv_heads * ref_.dim; ++n) {
        ref_.key_sum_at(s, 0, 0)[n] = 0;
      }
      sequence = s;
      return {};
    }
    return {status_code::out_of_pages,
            "omnisparse: every sequence of the cache is in use: finish one, or make the cache with "
            "more sequences"};
  }

  /// Ends a sequence: its pages go back to the pool and its number may be given out again.
  status finish(int sequence) noexcept {
    if (!ref_.in_use(sequence)) return unknown();
    for (int g = 0; g < ref_.kv_heads; ++g) {
      shorten(ref_.lane(sequence, g, segment::text), 0);
      shorten(ref_.lane(sequence, g, segment::visual), 0);
    }
    ref_.appended[sequence] = -1;
    return {};
  }

  /// Appends tokens of one kind: k and v [kv_heads, tokens, dim], at the positions that follow.
  /// O(1) a token. Refused as a whole when the pool or the sequence cannot take all of them, or
  /// when k or v lie in the cache's own memory.
  template <class K>
  status append(int sequence, tensor_view<K, space, 3> const& k, tensor_view<K, space, 3> const& v,
                segment kind) noexcept {
    return append_if(sequence, k, v, [kind](int) { return kind; }, [](int, int) { return true; });
  }

  /// Appends the tokens for which keeps(kv_head, n) is true; kind(n) is the segment of token n. All
  /// of them count as appended: positions and the classifier's sums go on.
  template <class K, class Kind, class Keeps>
  status append_if(int sequence, tensor_view<K, space, 3> const& k,
                   tensor_view<K, space, 3> const& v, Kind const& kind,
                   Keeps const& keeps) noexcept {
    static_assert(std::is_same_v<std::remove_const_t<K>, T>,
                  "omnisparse: k and v must have the dtype of the cache");
    if (!ref_.in_use(sequence)) return unknown();
    int const tokens = k.extent(1);
    if (k.extent(0) != ref_.kv_heads || k.extent(2) != ref_.dim || v.extent(0) != ref_.kv_heads ||
        v.extent(1) != tokens || v.extent(2) != ref_.dim || tokens < 0 ||
        (tokens > 0 && (k.is_null() || v.is_null() || k.stride(2) != 1 || v.stride(2) != 1))) {
      return {status_code::invalid_shape,
              "omnisparse: k and v must be [kv_heads, tokens, dim] of the cache, with contiguous "
              "rows"};
    }
    if (!detail::strides_fit(k) || !detail::strides_fit(v)) return detail::stride_refusal();
    if (shares_memory(k) || shares_memory(v)) {
      return {status_code::invalid_view,
              "omnisparse: k or v lie in the cache's own memory, which append may write: copy them "
              "first"};
    }
    if (tokens > 0x7fffffff - ref_.appended[sequence]) {
      return {status_code::out_of_pages,
              "omnisparse: the sequence would count more than 2^31 - 1 positions: finish it and "
              "start another; nothing was stored"};
    }
    std::int64_t needed = 0;
    for (int g = 0; g < ref_.kv_heads; ++g) {
      int adds[2] = {0, 0};
      for (int n = 0; n < tokens; ++n) {
        if (keeps(g, n)) ++adds[kind(n) == segment::text ? 0 : 1];
      }
      int const texts = stored(sequence, g, segment::text);
      int const visuals = stored(sequence, g, segment::visual);
      if (std::int64_t{texts} + adds[0] + visuals + adds[1] > max_tokens_) {
        return {status_code::out_of_pages,
                "omnisparse: a KV head of the sequence would store more than max_tokens of the "
                "cache, text and visual together: slim it, or make the cache with a larger "
                "max_tokens; nothing was stored"};
      }
      needed += pages_for(texts + adds[0]) - pages_for(texts);
      needed += pages_for(visuals + adds[1]) - pages_for(visuals);
    }
    if (needed > pool_.free_pages()) {
      return {status_code::out_of_pages,
              "omnisparse: the pool has too few free pages for these tokens: slim or finish a "
              "sequence, or make the cache with more pages; nothing was stored"};
    }
    int const first = ref_.appended[sequence];
    for (int g = 0; g < ref_.kv_heads; ++g) {
      for (int n = 0; n < tokens; ++n) {
        T const* const key = k.at(g, n);
        double* const sum = ref_.key_sum_at(sequence, g, first + n < ref_.sink_keys ? 0 : 1);
        for (int d = 0; d < ref_.dim; ++d) sum[d] += static_cast<double>(key[d]);
        if (keeps(g, n)) push(ref_.lane(sequence, g, kind(n)), key, v.at(g, n), first + n);
      }
    }
    ref_.appended[sequence] = first + tokens;
    return {};
  }

  /// Drops the stored visual tokens for which keeps(kv_head, position) is false, in place; whole
  /// pages go back to the pool.
  template <class Keeps>
  status keep_if(int sequence, Keeps const& keeps) noexcept {
    if (!ref_.in_use(sequence)) return unknown();
    for (int g = 0; g < ref_.kv_heads; ++g) {
      std::int64_t const lane = ref_.lane(sequence, g, segment::visual);
      int kept = 0;
      for (int n = 0; n < ref_.stored[lane]; ++n) {
        int const from = ref_.page(lane, n / ref_.page_tokens), slot = n % ref_.page_tokens;
        int const position = *ref_.positions_at(from, slot);
        if (!keeps(g, position)) continue;
        if (kept != n) {
          write(lane, kept, ref_.keys_at(from, slot), ref_.page_tokens, ref_.values_at(from, slot),
                position);
        }
        ++kept;
      }
      shorten(lane, kept);
    }
    return {};
  }

  /// Does an element of the view lie in the cache's own memory?
  template <class U, std::size_t Rank>
  bool shares_memory(tensor_view<U, space, Rank> const& view) const noexcept {
    return meets(detail::footprint(view));
  }
  /// Does a byte of the workspace?
  bool shares_memory(workspace_view<space> const& ws) const noexcept {
    return meets(detail::footprint(ws.data, ws.bytes));
  }

  /// Tokens that a KV head of a sequence stores; 0 for one that is not in use.
  int stored(int sequence, int kv_head, segment kind) const noexcept {
    return ref_.in_use(sequence) ? ref_.stored[ref_.lane(sequence, kv_head, kind)] : 0;
  }
  /// Tokens ever appended to a sequence, dropped ones included: the next token's position.
  int appended(int sequence) const noexcept {
    return ref_.in_use(sequence) ? ref_.appended[sequence] : 0;
  }
  int free_pages() const noexcept { return pool_.free_pages(); }
  int pages() const noexcept { return pool_.pages(); }
  /// Bytes of one page: keys, values and positions.
  std::size_t page_bytes() const noexcept {
    return static_cast<std::size_t>(ref_.page_tokens) *
           (2 * static_cast<std::size_t>(ref_.dim) * sizeof(T) + sizeof(int));
  }
  /// Bytes of the pages in use.
  std::size_t bytes_in_use() const noexcept {
    return static_cast<std::size_t>(pool_.pages() - pool_.free_pages()) * page_bytes();
  }
  /// Bytes that the pages would take if every token ever appended were stored.
  std::size_t full_bytes() const noexcept {
    std::size_t pages = 0;
    for (int s = 0; s < ref_.sequences; ++s) {
      if (ref_.appended[s] > 0) pages += static_cast<std::size_t>(pages_for(ref_.appended[s]));
    }
    return pages * static_cast<std::size_t>(ref_.kv_heads) * page_bytes();
  }

 private:
  static constexpr status unknown() noexcept {
    return {status_code::unknown_sequence,
            "omnisparse: the cache has no such sequence in use: add() gives out numbers, finish() "
            "ends them"};
  }
  bool meets(detail::footprint const& other) const noexcept {
    for (buffer<space> const* part : {&keys_, &values_, &positions_, &tables_, &counts_, &sums_}) {
      if (detail::footprint(part->data(), part->bytes()).meets(other)) return true;
    }
    return false;
  }
  int pages_for(int tokens) const noexcept { return ceil_div(tokens, ref_.page_tokens); }

  // key [dim], `key_ld` apart, may be a slot of the cache.
  void write(std::int64_t lane, int n, T const* key, int key_ld, T const* value,
             int position) noexcept {
    int const page = ref_.page(lane, n / ref_.page_tokens), slot = n % ref_.page_tokens;
    T* const column = ref_.keys_at(page, slot);
    for (int d = 0; d < ref_.dim; ++d) column[d * ref_.page_tokens] = key[d * key_ld];
    std::memcpy(ref_.values_at(page, slot), value, sizeof(T) * static_cast<std::size_t>(ref_.dim));
    *ref_.positions_at(page, slot) = position;
  }
  void push(std::int64_t lane, T const* key, T const* value, int position) noexcept {
    int const n = ref_.stored[lane]++;
    if (n % ref_.page_tokens == 0) {
      ref_.tables[lane * ref_.lane_pages + n / ref_.page_tokens] = pool_.take();
    }
    write(lane, n, key, 1, value, position);
  }
  void shorten(std::int64_t lane, int tokens) noexcept {
    for (int n = pages_for(tokens); n < pages_for(ref_.stored[lane]); ++n) {
      pool_.give_back(ref_.page(lane, n));
    }
    ref_.stored[lane] = tokens;
  }

  kv_cache_ref<space, T> ref_ = {};
  int max_tokens_ = 0;
  page_pool pool_;
  buffer<space> keys_, values_, positions_, tables_, counts_, sums_;
};

}  // namespace omnisparse
