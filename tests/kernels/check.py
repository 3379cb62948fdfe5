"""Compiles a .cu for Hopper and reads what ptxas says about each kernel.

Fails where a Hopper kernel spills registers, or where ptxas reports C75xx: products serialised or
setmaxnreg ignored, which cost a factor and are mere information to it. Writes a table.
"""

from __future__ import annotations

import argparse
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Kernel:
    name: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    stores: int = 0
    loads: int = 0

    @property
    def is_hopper(self) -> bool:
        return "hopper" in self.name


def readable(name: str) -> str:
    """A kernel's name with its template arguments, without what every name has."""
    if shutil.which("c++filt"):
        name = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip() or name
    name = re.sub(r"^void ", "", name)
    name = re.sub(r"omnisparse::(kernel::)?", "", name)
    name = re.sub(r"\((?:int|bool)\)(\d+)", r"\1", name)
    depth, end = 0, len(name)
    for at, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            end = at
            break
    return name[:end]


def parse(log: str) -> list[Kernel]:
    kernels: list[Kernel] = []
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)'", line):
            kernels.append(Kernel(found[1]))
        if not kernels:
            continue
        if found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernels[-1].stack, kernels[-1].stores, kernels[-1].loads = (int(n) for n in found.groups())
        if found := re.search(r"Used (\d+) registers", line):
            kernels[-1].registers = int(found[1])
            if found := re.search(r"(\d+) bytes smem", line):
                kernels[-1].shared = int(found[1])
    return kernels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--include", type=Path, action="append", default=[])
    parser.add_argument("--work", type=Path, default=Path("."), help="where the object goes")
    parser.add_argument("--table", type=Path, help="where the table goes")
    arguments = parser.parse_args()

    command = [arguments.nvcc, "-std=c++20", "-O3", "-gencode=arch=compute_90a,code=sm_90a", "-Werror=all-warnings"]
    command += ["-Xptxas", "-v", "-c", str(arguments.source), "-o", str(arguments.work / "kernels.o")]
    command += [f"-I{folder}" for folder in arguments.include]
    built = subprocess.run(command, capture_output=True, text=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # whoever else is on this machine
    seconds = used.ru_utime + used.ru_stime
    log = built.stdout + built.stderr
    if built.returncode != 0:
        print(log[:8000])
        return 1

    kernels = sorted(parse(log), key=lambda kernel: readable(kernel.name))
    lines = [
        "# Kernels of one CUDA prefill",
        "",
        f"`{arguments.source.name}` (bfloat16, local_first), sm_90a, compiled in {seconds:.0f} s of one core.",
        "Shared memory is what is static; most kernels take more when launched.",
        "",
        "| kernel | registers | shared bytes | stack bytes | spilled bytes, stores / loads |",
        "| --- | --- | --- | --- | --- |",
    ]
    for k in kernels:
        lines.append(f"| `{readable(k.name)}` | {k.registers} | {k.shared} | {k.stack} | {k.stores} / {k.loads} |")
    print("\n".join(lines))
    if arguments.table:
        arguments.table.write_text("\n".join(lines) + "\n")

    problems = [f"{readable(k.name)} spills registers" for k in kernels if k.is_hopper and k.stores + k.loads > 0]
    problems += sorted({line.strip() for line in log.splitlines() if re.search(r"\(C75\d\d\)", line)})
    if not any(k.is_hopper for k in kernels):
        problems.append("no Hopper kernel was compiled: is the name still 'hopper...'?")
    for problem in problems:
        print(f"kernels: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
