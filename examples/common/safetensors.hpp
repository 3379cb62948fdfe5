/// @file
/// Reading safetensors files: 8 bytes of header length, a JSON header, then raw values.
/// A file is not trusted: whatever is wrong with it ends in `safetensors::error`, whose sentence
/// names the file, the tensor and the limit.
#pragma once

#include "safetensors_header.hpp"

#include <omnisparse/core/dtype.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#if __has_include(<unistd.h>)
#  include <unistd.h>
#endif

namespace safetensors {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

namespace detail {

/// Bytes of this machine's memory, or no limit where it cannot be asked.
inline std::uint64_t memory_bytes() noexcept {
#if defined(_SC_PHYS_PAGES) && defined(_SC_PAGESIZE)
  long const pages = sysconf(_SC_PHYS_PAGES);
  long const page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) {
    return static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page);
  }
#endif
  return std::numeric_limits<std::uint64_t>::max();
}

}  // namespace detail

/// A file whose header has been read and checked whole; values are read when asked for.
class file {
 public:
  static constexpr std::uint64_t most_header_bytes = 100'000'000;  ///< the format's own limit

  /// Opens and checks `path`. Throws `error`.
  explicit file(std::filesystem::path path) : path_(std::move(path)) {
    try {
      open();
    } catch (error const& e) {
      fail(e.what());
    } catch (std::bad_alloc const&) {
      fail("there is not enough memory for its header");
    }
  }

  std::map<std::string, entry> const& entries() const noexcept { return entries_; }
  std::map<std::string, std::string> const& metadata() const noexcept { return metadata_; }
  bool contains(std::string const& name) const { return entries_.count(name) > 0; }

  /// The tensor of a name. Throws `error` where there is none.
  entry const& at(std::string const& name) const {
    auto const found = entries_.find(name);
    if (found == entries_.end()) fail("it has no tensor " + detail::quoted(name));
    return found->second;
  }

  /// The tensor of a name, which must have these extents; -1 stands for any.
  entry const& at(std::string const& name, shape const& wanted) const {
    entry const& one = at(name);
    bool fits = one.extents.size() == wanted.size();
    for (std::size_t d = 0; fits && d < wanted.size(); ++d) {
      fits = wanted[d] < 0 || wanted[d] == one.extents[d];
    }
    if (!fits) {
      fail("tensor " + detail::quoted(name) + " has the shape " + detail::to_text(one.extents) +
           " where " + detail::to_text(wanted) + " is needed (-1: any)");
    }
    return one;
  }

  /// The raw bytes of a tensor into `to`, which has exactly its size. Throws `error`.
  void read(entry const& one, std::span<std::byte> to) {
    if (to.size() != one.end - one.begin) fail("a buffer of another size was given to read into");
    stream_.clear();
    stream_.seekg(static_cast<std::streamoff>(data_start_ + one.begin));
    stream_.read(reinterpret_cast<char*>(to.data()), static_cast<std::streamsize>(to.size()));
    if (!stream_) fail("tensor " + detail::quoted(one.name) + " could not be read");
  }

  /// The values of a tensor as stored; T must have the width of its dtype.
  template <class T>
  std::vector<T> values(entry const& one) {
    if (sizeof(T) != bytes_of(one.dtype)) {
      fail("tensor " + detail::quoted(one.name) + " is " + one.dtype + ", not what is read here");
    }
    std::vector<T> data = allocate<T>(one);
    read(one, std::as_writable_bytes(std::span(data)));
    return data;
  }

  /// The values of an F32, F16 or BF16 tensor as floats.
  std::vector<float> floats(entry const& one) {
    if (one.dtype == "F32") return values<float>(one);
    if (one.dtype == "F16") return widened<omnisparse::half>(one);
    if (one.dtype == "BF16") return widened<omnisparse::bfloat16>(one);
    fail("tensor " + detail::quoted(one.name) + " is " + one.dtype +
         "; only F32, F16 and BF16 can be read here");
  }

  /// Throws `error` with the file's name before the sentence.
  [[noreturn]] void fail(std::string const& why) const { throw error(path_.string() + ": " + why); }

 private:
  void open() {
    std::error_code code;
    if (!std::filesystem::is_regular_file(path_, code)) {
      throw error("there is no such file (or it is no regular one)");
    }
    std::uint64_t const size = std::filesystem::file_size(path_, code);
    stream_.open(path_, std::ios::binary);
    if (code || !stream_) throw error("the file cannot be opened");
    std::uint64_t header_bytes = 0;
    stream_.read(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes);
    if (!stream_) throw error("it is shorter than the 8 bytes that every safetensors file has");
    if (header_bytes > most_header_bytes) {
      throw error("its header claims " + std::to_string(header_bytes) +
                  " bytes, more than the format's 100,000,000: this is no safetensors file");
    }
    if (header_bytes > size - sizeof header_bytes) {
      throw error("its header claims " + std::to_string(header_bytes) +
                  " bytes, more than the file has");
    }
    std::string text(static_cast<std::size_t>(header_bytes), '\0');
    stream_.read(text.data(), static_cast<std::streamsize>(text.size()));
    if (!stream_) throw error("its header could not be read");
    data_start_ = sizeof header_bytes + header_bytes;
    try {
      read_header(detail::parse_header(text), size - data_start_);
    } catch (error const& e) {
      throw error(std::string("its header cannot be used: ") + e.what());
    }
  }

  void read_header(nlohmann::json const& header, std::uint64_t data_bytes) {
    if (!header.is_object()) throw error("it is not a JSON object");
    for (auto const& [name, value] : header.items()) {
      if (name != "__metadata__") {
        entries_.emplace(name, detail::read_entry(name, value, data_bytes));
        continue;
      }
      if (!value.is_object()) throw error("its __metadata__ is not an object");
      for (auto const& [key, text] : value.items()) {
        if (!text.is_string()) throw error("its __metadata__ holds something else than strings");
        metadata_.emplace(key, text.get<std::string>());
      }
    }
    detail::check_cover(entries_, data_bytes);
  }

  template <class T>
  std::vector<T> allocate(entry const& one) const {
    try {
      if (one.count() < detail::memory_bytes() / sizeof(T)) {
        return std::vector<T>(static_cast<std::size_t>(one.count()));
      }
    } catch (std::bad_alloc const&) {  // answered below, like a size that cannot be
    }
    fail("tensor " + detail::quoted(one.name) + " is larger than this machine's memory");
  }

  template <class Narrow>
  std::vector<float> widened(entry const& one) {
    constexpr std::size_t piece = std::size_t{1} << 16;  // values: never two whole copies
    std::vector<float> wide = allocate<float>(one);
    std::vector<Narrow> narrow(std::min(piece, wide.size()));
    for (std::size_t at = 0; at < wide.size(); at += piece) {
      std::size_t const n = std::min(piece, wide.size() - at);
      entry part = one;
      part.begin += at * sizeof(Narrow);
      part.end = part.begin + n * sizeof(Narrow);
      read(part, std::as_writable_bytes(std::span(narrow).first(n)));
      std::copy_n(narrow.begin(), n, wide.begin() + static_cast<std::ptrdiff_t>(at));
    }
    return wide;
  }

  std::filesystem::path path_;
  std::ifstream stream_;
  std::uint64_t data_start_ = 0;
  std::map<std::string, entry> entries_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace safetensors
