"""Compares runs of `study` on the same tensors: two plans, and the outputs of one plan on two backends.

    study layer.safetensors --backend reference --plan-out a.plan --out a.out --json a.json
    study layer.safetensors --backend cuda      --plan-out b.plan --out b.out --json b.json
    study layer.safetensors --backend reference --plan-in b.plan --out c.out
    python3 bench/quality.py NAME a b c [NAME a b c ...] [--table bench/results/cuda_quality.md]

`a` decided in double precision, `b` on the GPU, `c` attended in double precision by the plan of `b`.
Of each quadruple prints the rows and list entries that a and b decide differently, how far b is from c
by the error rule, and what the plan comes to. Needs numpy alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

DTYPES = {"F32": np.float32, "U8": np.uint8}
STEP = 2.0**-7  # one rounding step of bfloat16 at 1
TITLE = [
    "# Plans and outputs of the GPU on real q, k, v",
    "",
    "Rows and list entries that the GPU decides otherwise than the CPU; recall is what the probe rows' lists hold of",
    "their mass. Outputs and log-sum-exps of attention by the GPU's plan, beside double precision by that plan.",
    "By `study` and `bench/quality.py`, on tensors of SmolLM2 at 8,000 tokens:",
    "`sh cmake/demo.sh --max-tokens 8000 --text FILE --dump 3,12,22:layer%.safetensors --dump-dtype BF16`.",
    "",
]
HEADER = (
    "| case | rows that differ | list entries that differ | mean recall of lists, GPU / CPU "
    "| active | rescued | density | output: largest error (limit) | cosine distance | lse error |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The F32 and U8 tensors of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        found[name] = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def compare(name: str, decided: str, gpu: str, oracle: str) -> tuple[str, bool]:
    """One line of the table, and whether everything holds."""
    a, b = tensors(Path(f"{decided}.plan")), tensors(Path(f"{gpu}.plan"))
    rows = int((a["rows"] != b["rows"]).sum())
    entries = int((a["kept"] != b["kept"]).sum())
    kept = int(a["kept"].sum())
    x, y = tensors(Path(f"{gpu}.out")), tensors(Path(f"{oracle}.out"))
    out, wanted = x["out"].astype(np.float64).ravel(), y["out"].astype(np.float64).ravel()
    largest = float(np.abs(out - wanted).max())
    limit = STEP * max(1.0, float(np.abs(wanted).max()))
    cosine = 1 - float(out @ wanted) / float(np.sqrt((out @ out) * (wanted @ wanted)))
    finite = np.isfinite(y["lse"])
    empty_alike = bool(np.array_equal(x["lse"][~finite], y["lse"][~finite]))
    lse = np.abs(x["lse"][finite] - y["lse"][finite]) / (1 + np.abs(y["lse"][finite]))
    summary, reference = (json.loads(Path(f"{run}.json").read_text()) for run in (gpu, decided))
    holds = (
        rows * 300 <= a["rows"].size
        and entries * 200 <= kept + 1000
        and largest <= limit
        and cosine < 1e-5
        and float(lse.max()) < 1e-5
        and empty_alike
        and bool(np.isfinite(out).all())
    )
    line = (
        f"| {name} | {rows} of {a['rows'].size} | {entries} of {kept} | {summary['recall']:.4f} / {reference['recall']:.4f} "
        f"| {summary['active']:.1%} | {summary['rescued']:.1%} | {summary['density']:.1%} "
        f"| {largest:.1e} ({limit:.1e}) | {cosine:.1e} | {float(lse.max()):.1e} |"
    )
    return line if holds else line + " **misses**", holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", help="quadruples: a name and three paths without their extension")
    parser.add_argument("--table", type=Path, help="write the table here")
    arguments = parser.parse_args()
    if len(arguments.cases) % 4 != 0:
        parser.error("give a name and three runs for each case")
    lines, all_hold = [HEADER], True
    for n in range(0, len(arguments.cases), 4):
        line, holds = compare(*arguments.cases[n : n + 4])
        lines.append(line)
        all_hold = all_hold and holds
    print("\n".join(lines))
    if arguments.table:
        arguments.table.write_text("\n".join([*TITLE, *lines]) + "\n")
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
