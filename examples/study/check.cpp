// Runs `study` as a user would: every policy, a plan written and read again, and files that are
// damaged, truncated or hostile, each of which must end in exit code 2 and a sentence.
#include "../common/safetensors.hpp"
#include "../common/safetensors_writer.hpp"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <sys/wait.h>

namespace {

int failures = 0;
std::string program, folder;

int study(std::string const& arguments) {
  std::string const command = "\"" + program + "\" " + arguments + " >\"" + folder + "/log\" 2>&1";
  int const code = std::system(command.c_str());
  return WIFEXITED(code) ? WEXITSTATUS(code) : -1;
}

void expect(bool holds, std::string const& what) {
  if (holds) return;
  std::ifstream log(folder + "/log");
  std::string const text((std::istreambuf_iterator<char>(log)), std::istreambuf_iterator<char>());
  std::printf("failed: %s\n%s\n", what.c_str(), text.c_str());
  ++failures;
}

std::string in(std::string const& name) { return "\"" + folder + "/" + name + "\""; }

std::vector<float> noise(std::size_t n, unsigned seed) {
  std::vector<float> x(n);
  for (float& value : x) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(seed >> 8) / 8388608.f - 1.f;
  }
  return x;
}

void write_input(std::string const& name, int dim = 16) {
  auto const d = static_cast<std::size_t>(dim);
  auto const q = noise(2 * 4 * 90 * d, 1), k = noise(2 * 2 * 100 * d, 2),
             v = noise(2 * 2 * 100 * d, 3);
  safetensors::writer file;
  file.add("q", {2, 4, 90, dim}, q);
  file.add("k", {2, 2, 100, dim}, k);
  file.add("v", {2, 2, 100, dim}, v);
  file.save(folder + "/" + name);
}

std::string contents(std::string const& name) {
  std::ifstream file(folder + "/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void write_bytes(std::string const& name, std::string const& bytes) {
  std::ofstream(folder + "/" + name, std::ios::binary) << bytes;
}

/// A file with this JSON as its header and `data` bytes of zeros.
void write_header(std::string const& name, std::string const& json, std::size_t data) {
  std::uint64_t const size = json.size();
  std::string bytes(reinterpret_cast<char const*>(&size), sizeof size);
  write_bytes(name, bytes + json + std::string(data, '\0'));
}

float largest_difference(std::string const& a, std::string const& b) {
  safetensors::file x(folder + "/" + a), y(folder + "/" + b);
  auto const one = x.floats(x.at("out")), two = y.floats(y.at("out"));
  float most = one.size() == two.size() ? 0.f : 1e9f;
  for (std::size_t n = 0; n < one.size() && n < two.size(); ++n) {
    most = std::max(most, std::abs(one[n] - two[n]));
  }
  return most;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 1;
  program = argv[1], folder = argv[2];
  write_input("input.safetensors");

  for (std::string const policy : {"dense", "published", "local-first", "band"}) {
    for (std::string const mask : {"causal", "full"}) {
      std::string const options = in("input.safetensors") + " --policy " + policy + " --mask " +
                                  mask + " --window 8 --chunk 32 --tokens 10 --budget fixed";
      expect(study(options + " --out " + in("a") + " --plan-out " + in("plan") + " --json " +
                   in("json")) == 0,
             policy + " runs");
      expect(study(options + " --backend reference --plan-in " + in("plan") + " --out " +
                   in("b")) == 0,
             policy + " runs by the written plan");
      expect(largest_difference("a", "b") < 1e-5f, policy + ": both backends agree on one plan");
    }
  }
  for (std::string const budget : {"own", "flattest", "guaranteed", "per-head", "ratio", "dense"}) {
    expect(study(in("input.safetensors") + " --budget " + budget) == 0, "budget " + budget);
  }

  // On the GPU: the same plan and outputs, or, without one, exit code 2 and a sentence.
  expect(study(in("input.safetensors") + " --backend cuda") == 2, "D 16 is refused on the GPU");
  write_input("wide.safetensors", 64);
  std::string const wide = in("wide.safetensors") + " --window 8 --chunk 32 --tokens 10";
  int const on_gpu = study(wide + " --backend cuda --plan-out " + in("plan") + " --out " + in("a"));
  expect(on_gpu == 0 || on_gpu == 2, "the GPU runs or refuses");
  if (on_gpu == 0) {
    expect(study(wide + " --plan-in " + in("plan") + " --out " + in("b")) == 0,
           "the CPU runs by the GPU's plan");
    expect(largest_difference("a", "b") < 1e-4f, "CPU and GPU agree on one plan");
  }

  std::string const good = contents("input.safetensors");
  for (std::size_t const size : {std::size_t{0}, std::size_t{7}, std::size_t{8}, std::size_t{60},
                                 good.size() / 2, good.size() - 1}) {
    write_bytes("bad", good.substr(0, size));
    expect(study(in("bad")) == 2, "a file cut to " + std::to_string(size) + " bytes is refused");
  }
  for (std::size_t at = 0; at < 200; at += 3) {  // whatever one changed byte does, it is no crash
    std::string bytes = good;
    bytes[at] = static_cast<char>(bytes[at] ^ 0x15);
    write_bytes("bad", bytes);
    int const code = study(in("bad"));
    expect(code == 0 || code == 2, "byte " + std::to_string(at) + " changed");
  }
  std::string const tensor = R"("dtype":"F32","shape":[1,1,2,8],"data_offsets":)";
  std::pair<std::string, std::size_t> const hostile[] = {
      {"{", 0},
      {"[]", 0},
      {"{}", 0},
      {R"({"q":5})", 0},
      {R"({"q":{"dtype":"F32","shape":[4294967296,4294967296,4294967296,1],"data_offsets":[0,0]}})",
       0},
      {R"({"q":{"dtype":"F32","shape":[-1,1,2,8],"data_offsets":[0,64]}})", 64},
      {R"({"q":{"dtype":"F99","shape":[1,1,2,8],"data_offsets":[0,64]}})", 64},
      {"{\"q\":{" + tensor + "[0,64]},\"k\":{" + tensor + "[32,96]},\"v\":{" + tensor +
           "[96,160]}}",
       160},
      {"{\"q\":{" + tensor + "[64,0]}}", 64},
      {"{\"q\":{" + tensor + "[0,64]},\"q\":{" + tensor + "[0,64]}}", 64},
      {std::string(100000, '['), 0}};
  for (auto const& [json, data] : hostile) {
    write_header("bad", json, data);
    expect(study(in("bad")) == 2, "header refused: " + json.substr(0, 60));
  }
  write_bytes("bad", std::string(8, '\xff') + good);
  expect(study(in("bad")) == 2, "a header of 2^64 - 1 bytes is refused");
  expect(study(in("nothing-here")) == 2, "a missing file is refused");
  expect(study(in("input.safetensors") + " --plan-in " + in("input.safetensors")) == 2,
         "no plan in the file");
  expect(study(in("input.safetensors") + " --policy none-such") != 0,
         "an unknown policy is refused");
  std::printf("%s\n", failures == 0 ? "study: all checks passed" : "study: checks failed");
  return failures == 0 ? 0 : 1;
}
