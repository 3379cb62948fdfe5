/// @file
/// Files that are there in full or not at all.
#pragma once

#include <filesystem>
#include <fstream>
#include <ostream>
#include <random>
#include <stdexcept>
#include <string>
#include <system_error>

namespace common {

/// Are these two names of one file, through links too? Neither has to be there.
inline bool is_same_file(std::filesystem::path const& a, std::filesystem::path const& b) {
  std::error_code error;
  if (std::filesystem::equivalent(a, b, error) && !error) return true;
  auto const one = std::filesystem::weakly_canonical(a, error);
  auto const two = std::filesystem::weakly_canonical(b, error);
  return !one.empty() && one == two;
}

/// Calls write(std::ostream&) on a new file beside `path` and, once that is complete, renames it to
/// `path`: whatever was there stays whole until then, and for good when anything fails. A link is
/// followed; what is no regular file, such as /dev/stdout, is written as it is. Throws
/// std::runtime_error.
template <class Write>
void write_file(std::filesystem::path const& path, Write const& write) {
  namespace fs = std::filesystem;
  std::error_code error;
  auto const fail = [&path] {
    throw std::runtime_error(path.string() +
                             ": the file could not be written (is there such a folder, and room?)");
  };
  bool const in_place = fs::exists(path, error) && !fs::is_regular_file(path, error);
  fs::path const target = fs::is_symlink(path, error) ? fs::weakly_canonical(path, error) : path;
  if (target.empty()) fail();
  fs::path part = target;
  if (!in_place) part += ".part" + std::to_string(std::random_device{}());
  std::ofstream file(part, std::ios::binary);
  if (!file) fail();
  try {
    write(static_cast<std::ostream&>(file));
    file.close();
    if (!file) fail();
    if (!in_place) fs::rename(part, target, error);
    if (error) fail();
  } catch (...) {
    if (!in_place) fs::remove(part, error);
    throw;
  }
}

}  // namespace common
