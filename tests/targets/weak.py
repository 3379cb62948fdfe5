"""Fails where an object file compiled for new processors has code that a linker may give to units for old ones.

    python3 weak.py newer.o TARGET

Of two units' weak functions of one name a linker keeps either. So each of ours that uses an instruction set beyond
x86-64's first must have the target in its name.
"""

import re
import subprocess
import sys


def lines(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def main() -> int:
    path, target = sys.argv[1:]
    weak = {line.split()[-1] for line in lines("nm", path) if re.search(r" [WVu] ", line)}
    name, newer = None, {}
    for line in lines("objdump", "-d", "--no-show-raw-insn", path):
        if begins := re.match(r"[0-9a-f]+ <(.+)>:", line):
            name = begins[1]
        elif found := re.match(r"\s+[0-9a-f]+:\s+(v\w+|kmov\w*|shlx|shrx|sarx|mulx|rorx|andn|lzcnt)\b", line):
            newer.setdefault(name, found[1])
    if not any(target in one for one in newer):
        print(f"{path}: no function of {target} has a new instruction: is that still its name?")
        return 1
    shared = sorted(one for one in weak & newer.keys() if "omnisparse" in one and target not in one)
    for one in shared:
        print(f"{path}: {one} is shared by all targets and uses {newer[one]}")
    return 1 if shared else 0


if __name__ == "__main__":
    sys.exit(main())
