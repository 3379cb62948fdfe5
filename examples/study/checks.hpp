/// @file
/// What the checks of `study` share: running it, and the files it reads and writes.
#pragma once

#include "../common/safetensors.hpp"
#include "../common/safetensors_writer.hpp"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <sys/wait.h>

namespace study_checks {

inline int failures = 0;
inline std::string program, folder;

inline int study(std::string const& arguments) {
  std::string const command = "\"" + program + "\" " + arguments + " >\"" + folder + "/log\" 2>&1";
  int const code = std::system(command.c_str());
  return WIFEXITED(code) ? WEXITSTATUS(code) : -1;
}

inline void expect(bool holds, std::string const& what) {
  if (holds) return;
  std::ifstream log(folder + "/log");
  std::string const text((std::istreambuf_iterator<char>(log)), std::istreambuf_iterator<char>());
  std::printf("failed: %s\n%s\n", what.c_str(), text.c_str());
  ++failures;
}

inline std::string in(std::string const& name) { return "\"" + folder + "/" + name + "\""; }

inline std::vector<float> noise(std::size_t n, unsigned seed) {
  std::vector<float> x(n);
  for (float& value : x) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(seed >> 8) / 8388608.f - 1.f;
  }
  return x;
}

inline void write_input(std::string const& name, int dim = 16) {
  auto const d = static_cast<std::size_t>(dim);
  auto const q = noise(2 * 4 * 90 * d, 1), k = noise(2 * 2 * 100 * d, 2),
             v = noise(2 * 2 * 100 * d, 3);
  safetensors::writer file;
  file.add("q", {2, 4, 90, dim}, q);
  file.add("k", {2, 2, 100, dim}, k);
  file.add("v", {2, 2, 100, dim}, v);
  file.save(folder + "/" + name);
}

inline std::string contents(std::string const& name) {
  std::ifstream file(folder + "/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_bytes(std::string const& name, std::string const& bytes) {
  std::ofstream(folder + "/" + name, std::ios::binary) << bytes;
}

/// A file with this JSON as its header and `data` bytes of zeros.
inline void write_header(std::string const& name, std::string const& json, std::size_t data) {
  std::uint64_t const size = json.size();
  std::string bytes(reinterpret_cast<char const*>(&size), sizeof size);
  write_bytes(name, bytes + json + std::string(data, '\0'));
}

inline float largest_difference(std::string const& a, std::string const& b) {
  safetensors::file x(folder + "/" + a), y(folder + "/" + b);
  auto const one = x.floats(x.at("out")), two = y.floats(y.at("out"));
  float most = one.size() == two.size() ? 0.f : 1e9f;
  for (std::size_t n = 0; n < one.size() && n < two.size(); ++n) {
    most = std::max(most, std::abs(one[n] - two[n]));
  }
  return most;
}

inline bool in_log(std::string const& words) {
  return contents("log").find(words) != std::string::npos;
}

/// Refused with exit code 2 and a sentence that names the option.
inline void expect_refused(std::string const& arguments, std::string const& words) {
  bool const refused = study(arguments) == 2 && in_log(words);
  expect(refused, arguments + " is refused, by a sentence with: " + words);
}

/// Every option is heeded or refused.
void check_heeded();
/// A plan is read as it was made.
void check_plan_files();
/// What is written is whole, and never what was read.
void check_outputs();

}  // namespace study_checks
