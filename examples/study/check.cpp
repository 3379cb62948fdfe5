// Runs `study` as a user would: every policy, a plan written and read again, and files that are
// damaged, truncated or hostile, each of which must end in exit code 2 and a sentence.
#include "checks.hpp"

using namespace study_checks;

int main(int argc, char** argv) {
  if (argc != 3) return 1;
  program = argv[1], folder = argv[2];
  write_input("input.safetensors");

  for (auto const& [policy, of_policy] :
       {std::pair{"dense", ""}, std::pair{"band", " --window 8 --sinks 1"},
        std::pair{"published", " --tau 0.4 --window 8 --chunk 32 --tokens 10 --budget fixed"},
        std::pair{"local-first", " --epsilon 0.1 --least 0.4 --chunk 32 --window 8"}}) {
    for (std::string const mask : {"causal", "full"}) {
      std::string const name = policy;
      expect(
          study(in("input.safetensors") + " --policy " + name + of_policy + " --mask " + mask +
                " --out " + in("a") + " --plan-out " + in("plan") + " --json " + in("json")) == 0,
          name + " runs");
      // The plan file says the near field, the mask and the rows per list.
      expect(study(in("input.safetensors") + " --backend reference --plan-in " + in("plan") +
                   " --out " + in("b")) == 0,
             name + " runs by the written plan");
      expect(largest_difference("a", "b") < 1e-5f, name + ": both backends agree on one plan");
    }
  }
  for (std::string const budget : {"own", "flattest", "guaranteed", "per-head", "ratio", "dense"}) {
    expect(study(in("input.safetensors") + " --budget " + budget) == 0, "budget " + budget);
  }
  check_heeded();
  check_plan_files();
  check_outputs();

  // On the GPU: the same plan and outputs, or, without one, exit code 2 and a sentence.
  expect(study(in("input.safetensors") + " --backend cuda") == 2, "D 16 is refused on the GPU");
  write_input("wide.safetensors", 64);
  std::string const wide = in("wide.safetensors");
  int const on_gpu = study(wide + " --window 8 --chunk 32 --backend cuda --plan-out " + in("plan") +
                           " --out " + in("a"));
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
