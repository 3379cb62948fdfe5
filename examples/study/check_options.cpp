// Options, plan files and outputs of `study`: each one heeded, or refused by a sentence.
#include "checks.hpp"

namespace study_checks {
namespace {

/// Each option of `ways` must change the output of the ones before.
void expect_heeded(std::string const& fixed, std::vector<std::string> const& ways) {
  std::string before;
  for (std::string const& way : ways) {
    std::string const arguments = in("input.safetensors") + " " + fixed + " " + way;
    expect(study(arguments + " --out " + in("heeded")) == 0, arguments + " runs");
    std::string const now = contents("heeded");
    expect(now != before, arguments + " is heeded");
    before = now;
  }
}

/// A plan for the input, without metadata but for `notes`.
void write_bare_plan(std::string const& name, int lists,
                     std::map<std::string, std::string> const& notes) {
  std::vector<std::uint8_t> const rows(2 * 4 * 90, 1);
  std::vector<std::uint8_t> kept(static_cast<std::size_t>(2 * lists * 2 * 100));
  for (std::size_t n = 0; n < kept.size(); ++n) kept[n] = n % 9 == 0;
  safetensors::writer file;
  file.add("rows", {2, 4, 90}, rows);
  file.add("kept", {2, lists, 2, 100}, kept);
  for (auto const& [key, text] : notes) file.note(key, text);
  file.save(folder + "/" + name);
}

}  // namespace

void check_heeded() {
  std::string const narrow = "--window 8 --chunk 32";
  expect_heeded(narrow, {"--recall 0.1", "--recall 0.99", "--recall 0.1 --budget flattest"});
  expect_heeded(narrow + " --policy published", {"--recall 0.1", "--recall 0.9"});
  expect_heeded(narrow + " --policy published --recall 0.3", {"--tau 0.2", "--tau 0.8"});
  expect_heeded(narrow + " --recall 0.3", {"--least 0.1", "--least 0.99"});
  expect_heeded(narrow + " --recall 0.3", {"--epsilon 0.001", "--epsilon 0.9"});
  expect_heeded(narrow + " --budget fixed", {"--tokens 1", "--tokens 20"});
  expect_heeded(narrow + " --budget ratio", {"--share 0.01", "--share 0.5"});
  expect_heeded("--policy band --sinks 0", {"--window 3", "--window 9"});
  expect_heeded("--policy dense", {"", "--scale 0.01", "--scale 2", "--mask full"});
  expect(study(in("input.safetensors") + " --threads 2 --out " + in("a")) == 0, "two threads");
  expect(study(in("input.safetensors") + " --threads 1 --out " + in("b")) == 0, "one thread");
  expect(contents("a") == contents("b"), "threads change nothing");

  std::string const q = in("input.safetensors") + " ";
  for (std::string const option : {"--recall 0.5", "--tokens 3", "--share 0.5", "--budget fixed",
                                   "--chunk 8", "--tau 0.5", "--epsilon 0.5", "--least 0.5"}) {
    std::string const name = option.substr(0, option.find(' '));
    expect_refused(q + "--policy dense " + option, name);
    expect_refused(q + "--policy band " + option, name);
  }
  expect_refused(q + "--policy dense --window 8", "--window");
  expect_refused(q + "--policy dense --sinks 8", "--sinks");
  expect_refused(q + "--policy published --epsilon 0.1", "--epsilon");
  expect_refused(q + "--policy published --least 0.1", "--least");
  expect_refused(q + "--tau 0.1", "--tau");
  expect_refused(q + "--tokens 3", "--budget fixed");
  expect_refused(q + "--budget ratio --tokens 3", "--budget fixed");
  expect_refused(q + "--share 0.3", "--budget ratio");
  expect_refused(q + "--budget fixed --recall 0.3", "--recall");
  expect_refused(q + "--budget dense --recall 0.3", "--recall");
  expect_refused(q + "--backend reference --threads 2", "--threads");
  for (std::string const name : {"recall", "epsilon", "least"}) {
    for (std::string const value : {"nan", "-nan", "inf", "-0.1", "1.1", "x"}) {
      expect_refused(q + "--" + name + "=" + value, "--" + name);
    }
  }
  expect_refused(q + "--policy published --tau=nan", "--tau");
  expect_refused(q + "--budget ratio --share=nan", "--share");
  for (std::string const value : {"nan", "0", "-1", "inf", "1e31"}) {
    expect_refused(q + "--scale=" + value, "--scale");
  }
  expect_refused(q + "--window=-1", "--window");
  expect_refused(q + "--threads=0", "--threads");
  expect_refused(q + "--chunk=3000000000", "--chunk");
}

void check_plan_files() {
  std::string const q = in("input.safetensors") + " ";
  expect(study(q + "--window 8 --sinks 2 --mask full --chunk 32 --plan-out " + in("plan")) == 0,
         "a plan is written");
  safetensors::file const written(folder + "/plan");
  for (auto const& [key, text] : {std::pair{"chunk_rows", "32"}, std::pair{"window", "8"},
                                  std::pair{"sinks", "2"}, std::pair{"mask", "full"}}) {
    auto const note = written.metadata().find(key);
    expect(note != written.metadata().end() && note->second == text,
           std::string("plan says ") + key);
  }
  std::string const given = q + "--plan-in " + in("plan") + " ";
  expect(study(given) == 0, "a plan says what it needs");
  expect(study(given + "--window 8 --sinks 2 --mask full --chunk 32 --scale 0.1 --threads 1") == 0,
         "options may say the same");
  for (std::string const other : {"--window 9", "--sinks 0", "--mask causal", "--chunk 31"}) {
    expect_refused(given + other, other.substr(0, other.find(' ')));
  }
  for (std::string const moot : {"--policy band", "--budget dense", "--recall 0.5", "--epsilon 0.1",
                                 "--tau 0.1", "--least 0.1", "--tokens 1", "--share 0.1"}) {
    expect_refused(given + moot, moot.substr(0, moot.find(' ')));
  }
  std::string const bare = q + "--plan-in " + in("bare") + " ", near = "--window 8 --sinks 2 ";
  write_bare_plan("bare", 2, {});  // 45 to 89 rows a list
  expect_refused(bare + "--chunk 50", "near field");
  expect_refused(bare + near, "--chunk");
  expect_refused(bare + near + "--chunk 44", "lists of 44");
  expect_refused(bare + near + "--chunk 0", "lists of 0");
  expect(study(bare + near + "--chunk 45 --out " + in("a")) == 0, "45 rows a list fit");
  expect(study(bare + near + "--chunk 89 --out " + in("b")) == 0, "so do 89");
  expect(contents("a") != contents("b"), "the rows per list are heeded");
  write_bare_plan("bare", 1, {});
  expect(study(bare + near) == 0, "one list needs no rows per list");
  expect(study(bare + near + "--chunk 0") == 0, "and is what --chunk 0 asks for");
  write_bare_plan("bare", 90, {});
  expect(study(bare + near) == 0, "a list a row fits in one way");
  write_bare_plan("bare", 45, {});
  expect(study(bare + near) == 0, "so do lists of two rows");
  write_bare_plan("bare", 44, {});
  expect_refused(bare + near, "--chunk");
  for (std::string const text : {"", "-1", "x", "45x", "4294967341", " 45"}) {
    write_bare_plan("bare", 2, {{"chunk_rows", text}, {"window", "8"}, {"sinks", "0"}});
    expect_refused(bare, "chunk_rows");
    write_bare_plan("bare", 1, {{"window", text}, {"sinks", "0"}});
    expect_refused(bare, "window");
  }
  write_bare_plan("bare", 1, {{"window", "8"}, {"sinks", "0"}, {"mask", "none"}});
  expect_refused(bare, "mask");
}

void check_outputs() {
  std::string const q = in("input.safetensors") + " ", good = contents("input.safetensors");
  auto const link = [](std::string const& to, std::string const& name, bool hard) {
    std::filesystem::remove(folder + "/" + name);
    if (hard) std::filesystem::create_hard_link(folder + "/" + to, folder + "/" + name);
    else std::filesystem::create_symlink(to, folder + "/" + name);
  };
  link("input.safetensors", "soft", false);
  link("input.safetensors", "hard", true);
  for (std::string const output : {"--out", "--json", "--plan-out"}) {
    for (std::string const name : {"input.safetensors", "soft", "hard", "./input.safetensors"}) {
      expect_refused(q + output + " " + in(name), output + " would overwrite the input");
    }
    expect_refused(q + output + " \"\"", output + " needs the name");
    expect(study(q + output + " " + in("no/such/folder")) == 2, output + " to no folder");
    expect(study(q + output + " \"" + folder + "\"") == 2, output + " to a folder");
  }
  expect(study(q + "--window 8 --plan-out " + in("plan")) == 0, "a plan is written");
  std::string const plan = contents("plan");
  expect_refused(q + "--plan-in " + in("plan") + " --plan-out " + in("plan"),
                 "overwrite --plan-in");
  expect_refused(q + "--out " + in("new") + " --json " + in("./new"), "overwrite --out");
  expect(contents("input.safetensors") == good && contents("plan") == plan, "inputs stay");
  // Through a link the file behind it is written; what was there before is gone, and no part stays.
  write_bytes("old", "old");
  link("old", "soft", false);
  expect(study(q + "--out " + in("soft")) == 0 && contents("old").size() > 1000,
         "links are followed");
  expect(std::filesystem::is_symlink(folder + "/soft"), "and stay links");
  for (auto const& one : std::filesystem::directory_iterator(folder)) {
    std::string const name = one.path().filename().string();
    expect(name.find(".part") == std::string::npos, name + " is left behind");
  }
}

}  // namespace study_checks
