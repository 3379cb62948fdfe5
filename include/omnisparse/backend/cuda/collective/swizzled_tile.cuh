/// @file
/// Tiles of 16-bit rows in shared memory: the one layout of q, K, V and out on Hopper.
#pragma once

#include <omnisparse/core/config.hpp>

#include <cstdint>

namespace omnisparse::collective {

/// Rows x D values as D / 64 panels of Rows x 128 bytes, one after another, each aligned to 1024
/// bytes and swizzled: the 16-byte chunk of a row has its lowest three address bits xored with the
/// row's. The copy engine writes a panel by one box {64, Rows} with its 128-byte swizzle.
template <int Rows, int D>
struct swizzled_tile {
  static_assert(Rows % 8 == 0 && D % 64 == 0);
  static constexpr int panels = D / 64;
  static constexpr int panel_bytes = Rows * 128;
  static constexpr int bytes = panels * panel_bytes;

  /// Where 16-byte chunk `chunk` (8 values) of a row begins, in bytes.
  OMNISPARSE_HD static constexpr int offset(int row, int chunk) noexcept {
    return chunk / 8 * panel_bytes + row * 128 + (chunk % 8 ^ row % 8) * 16;
  }

  /// The descriptor of an operand whose sum runs along the rows' values (q, K), at a shared
  /// address aligned to 1024 bytes.
  OMNISPARSE_HD static constexpr std::uint64_t along_values(std::uint32_t address) noexcept {
    return descriptor(address, 16);
  }
  /// What to add to it for the 16 values of step `s`. Steps never carry out of the address.
  OMNISPARSE_HD static constexpr std::uint64_t value_step(int s) noexcept {
    return static_cast<std::uint64_t>(s / 4 * panel_bytes + s % 4 * 32) >> 4;
  }

  /// The descriptor of an operand whose sum runs over the rows (V).
  OMNISPARSE_HD static constexpr std::uint64_t along_rows(std::uint32_t address) noexcept {
    return descriptor(address, panel_bytes);
  }
  /// What to add to it for the 16 rows of step `s`.
  OMNISPARSE_HD static constexpr std::uint64_t row_step(int s) noexcept {
    return static_cast<std::uint64_t>(s * 2048) >> 4;
  }

 private:
  // Bits 0-13 the address, 16-29 the leading offset (between panels; unused along values), 32-45
  // the stride from 8 rows to the next, 62-63 the swizzle: 1 is 128 bytes. Offsets in 16 bytes.
  OMNISPARSE_HD static constexpr std::uint64_t descriptor(std::uint32_t address,
                                                          int leading) noexcept {
    return static_cast<std::uint64_t>((address & 0x3ffffu) >> 4) |
           static_cast<std::uint64_t>(leading >> 4) << 16 | std::uint64_t{1024 >> 4} << 32 |
           std::uint64_t{1} << 62;
  }
};

}  // namespace omnisparse::collective
