/// @file
/// The header of a safetensors file: what its tensors are and where they lie, checked whole.
#pragma once

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace safetensors {

/// What a file that cannot be read or written throws; `what()` is one sentence for the user.
struct error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Tensor extents, outermost first.
using shape = std::vector<std::int64_t>;

/// One tensor of a file: what it is and where its bytes lie behind the header.
struct entry {
  std::string name;
  std::string dtype;  ///< as the file spells it: F32, F16, BF16, U8, ...
  safetensors::shape extents;
  std::uint64_t begin = 0;  ///< first byte, counted from the end of the header
  std::uint64_t end = 0;    ///< one past the last byte

  /// How many values the tensor has; the reader has checked that the product fits.
  std::uint64_t count() const noexcept {
    std::uint64_t n = 1;
    for (std::int64_t const extent : extents) n *= static_cast<std::uint64_t>(extent);
    return n;
  }
};

/// Bytes of one value of a dtype, 0 for a name that this reader does not know.
inline std::uint64_t bytes_of(std::string_view dtype) noexcept {
  constexpr std::pair<std::string_view, std::uint64_t> known[] = {
      {"F64", 8}, {"F32", 4}, {"F16", 2},  {"BF16", 2},    {"I64", 8},
      {"U64", 8}, {"I32", 4}, {"U32", 4},  {"I16", 2},     {"U16", 2},
      {"I8", 1},  {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  for (auto const& [name, bytes] : known) {
    if (name == dtype) return bytes;
  }
  return 0;
}

namespace detail {

/// A string from a file, short and without control characters, fit for a message.
inline std::string quoted(std::string text) {
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return nlohmann::json(text).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

/// "[1, 9, 4096, 64]".
inline std::string to_text(shape const& extents) {
  std::string text = "[";
  for (std::int64_t const extent : extents) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  }
  return text + "]";
}

/// Parses the header; refuses names that stand twice, which a JSON parser would merge silently.
inline nlohmann::json parse_header(std::string const& text) {
  std::vector<std::set<std::string>> names;
  auto const watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    auto const level = static_cast<std::size_t>(depth);
    if (event == nlohmann::json::parse_event_t::object_start) {
      if (level > 3) throw error("it nests deeper than a header does");
      names.resize(level + 1);
      names[level].clear();
    }
    if (event == nlohmann::json::parse_event_t::array_start && level > 3) {
      throw error("it nests deeper than a header does");
    }
    if (event == nlohmann::json::parse_event_t::key) {
      auto const& name = value.get_ref<std::string const&>();
      if (!names[level - 1].insert(name).second) throw error("it names " + quoted(name) + " twice");
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, watch);
  } catch (nlohmann::json::exception const&) {
    throw error("it is no valid JSON");
  }
}

/// One non-negative whole number of a header.
inline std::uint64_t read_number(nlohmann::json const& value, std::string const& what) {
  if (!value.is_number_unsigned()) throw error(what + " is not a whole number of at least 0");
  auto const number = value.get<std::uint64_t>();
  if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    throw error(what + " is larger than 2^63 - 1");
  }
  return number;
}

/// One tensor of the header; its offsets must lie in `data_bytes` and fit its dtype and shape.
inline entry read_entry(std::string const& name, nlohmann::json const& value,
                        std::uint64_t data_bytes) {
  std::string const who = "tensor " + quoted(name);
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") ||
      !value.contains("shape") || !value.contains("data_offsets")) {
    throw error(who + " does not have exactly a dtype, a shape and data_offsets");
  }
  entry read;
  read.name = name;
  if (!value["dtype"].is_string()) throw error(who + " has a dtype that is not a string");
  read.dtype = value["dtype"].get<std::string>();
  std::uint64_t const width = bytes_of(read.dtype);
  if (width == 0) throw error(who + " has the unknown dtype " + quoted(read.dtype));
  if (!value["shape"].is_array()) throw error(who + " has a shape that is not an array");
  std::uint64_t bytes = width;
  for (auto const& extent : value["shape"]) {
    std::uint64_t const n = read_number(extent, who + ": an extent of its shape");
    if (n != 0 && bytes > std::numeric_limits<std::uint64_t>::max() / n) {
      throw error(who + " has a shape whose size overflows 64 bits");
    }
    bytes *= n;
    read.extents.push_back(static_cast<std::int64_t>(n));
  }
  auto const& offsets = value["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2) {
    throw error(who + " has data_offsets that are not two numbers");
  }
  read.begin = read_number(offsets[0], who + ": its first offset");
  read.end = read_number(offsets[1], who + ": its second offset");
  if (read.begin > read.end || read.end > data_bytes) {
    throw error(who + " lies at bytes " + std::to_string(read.begin) + " to " +
                std::to_string(read.end) + ", outside the " + std::to_string(data_bytes) +
                " bytes of values in the file (is it truncated?)");
  }
  if (read.end - read.begin != bytes) {
    throw error(who + " takes " + std::to_string(read.end - read.begin) + " bytes, but " +
                read.dtype + " " + to_text(read.extents) + " needs " + std::to_string(bytes));
  }
  return read;
}

/// Refuses tensors that overlap and bytes that belong to no tensor, as the format does.
inline void check_cover(std::map<std::string, entry> const& entries, std::uint64_t data_bytes) {
  std::vector<entry const*> order;
  for (auto const& [name, one] : entries) order.push_back(&one);
  std::sort(order.begin(), order.end(), [](entry const* a, entry const* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  std::uint64_t at = 0;
  for (entry const* const one : order) {
    if (one->begin < at) throw error("tensor " + quoted(one->name) + " overlaps another tensor");
    if (one->begin > at) throw error("bytes before tensor " + quoted(one->name) + " are unused");
    at = one->end;
  }
  if (at != data_bytes) {
    throw error(std::to_string(data_bytes - at) + " bytes at the end belong to no tensor");
  }
}

}  // namespace detail

}  // namespace safetensors
