/// @file
/// Writing safetensors files.
#pragma once

#include "safetensors_header.hpp"
#include "write_file.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <ostream>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace safetensors {

/// Collects tensors and writes them as one file. The values are not copied: they must live until
/// `save`.
class writer {
 public:
  /// Adds a tensor; `values` are its bytes, row-major. Throws `error` where they do not fit.
  void add(std::string const& name, std::string const& dtype, shape const& extents,
           std::span<std::byte const> values) {
    entry one{name, dtype, extents, end_, end_ + values.size()};
    if (one.count() * bytes_of(dtype) != values.size() || bytes_of(dtype) == 0) {
      throw error("tensor " + detail::quoted(name) + " does not have the bytes of its shape");
    }
    end_ = one.end;
    pieces_.emplace_back(std::move(one), values);
  }
  /// Adds a tensor of floats.
  void add(std::string const& name, shape const& extents, std::span<float const> values) {
    add(name, "F32", extents, std::as_bytes(values));
  }
  /// Adds a tensor of bytes.
  void add(std::string const& name, shape const& extents, std::span<std::uint8_t const> values) {
    add(name, "U8", extents, std::as_bytes(values));
  }
  /// Adds a string to the file's metadata.
  void note(std::string const& key, std::string const& text) { metadata_[key] = text; }

  /// Writes the file, over an older one of that name, which stays until the new one is complete.
  /// Throws `error`.
  void save(std::filesystem::path const& path) const {
    nlohmann::json header = nlohmann::json::object();
    if (!metadata_.empty()) header["__metadata__"] = metadata_;
    for (auto const& [one, values] : pieces_) {
      header[one.name] = {
          {"dtype", one.dtype}, {"shape", one.extents}, {"data_offsets", {one.begin, one.end}}};
    }
    std::string text = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    text.append((8 - text.size() % 8) % 8, ' ');
    std::uint64_t const header_bytes = text.size();
    try {
      common::write_file(path, [&](std::ostream& out) {
        out.write(reinterpret_cast<char const*>(&header_bytes), sizeof header_bytes);
        out.write(text.data(), static_cast<std::streamsize>(text.size()));
        for (auto const& [one, values] : pieces_) {
          out.write(reinterpret_cast<char const*>(values.data()),
                    static_cast<std::streamsize>(values.size()));
        }
      });
    } catch (std::runtime_error const& e) {
      throw error(e.what());
    }
  }

 private:
  std::vector<std::pair<entry, std::span<std::byte const>>> pieces_;
  std::map<std::string, std::string> metadata_;
  std::uint64_t end_ = 0;
};

}  // namespace safetensors
