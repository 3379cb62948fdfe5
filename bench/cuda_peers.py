"""Prefill on an NVIDIA GPU beside its peers: PyTorch's cuDNN attention, FlexAttention, FlashAttention-3.

    python3 bench/cuda_peers.py build/cuda/bench/bench_cuda_attention [--fa3 fa3bench] [--folder bench/results]

One run on one machine, both sides in turn, medians of single launches that are each waited for. Needs
PyTorch with CUDA; --fa3 takes a program that prints "FA3 fwd hd128 28/4 S=8192 median 1.234 ms ...".
Writes cuda_attention.md, cuda_attention.json (all counters) and, with matplotlib, cuda_attention.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

SHAPES = {128: (28, 4), 64: (32, 8)}
LENGTHS = [1024 << n for n in range(8)]
DENSE = [8192, 32768, 65536, 131072]
SETTINGS = [(40, 10), (15, 5)]
LONGEST = 131072
DIMENSION_TOKENS = 16384
PRESETS = [(name, dim, 256 << n) for name, dims in (("local_first", (128, 64)), ("local_first_portable", (128,)), ("published", (128,)))
           for dim in dims for n in range(10)]


class Ours:
    """The benchmark program; every case becomes its counters. Cases asked for twice are averaged."""

    def __init__(self, program: Path) -> None:
        self.program = program
        self.seen: dict[str, list[dict]] = {}
        self.context: dict = {}

    def run(self, pattern: str) -> None:
        command = [str(self.program), f"--benchmark_filter={pattern}", "--benchmark_format=json"]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        report = json.loads(answer)
        self.context = report["context"]
        for case in report["benchmarks"]:
            name = re.sub(r"/iterations.*", "", case["name"])
            if case.get("error_occurred"):
                print(f"{name}: {case['error_message']}", file=sys.stderr)
            else:
                self.seen.setdefault(name, []).append(case)

    def get(self, name: str, counter: str = "ms") -> float:
        values = [case[counter] for case in self.seen.get(name, []) if counter in case]
        return statistics.mean(values) if values else math.nan


def milliseconds(call, rounds: int = 10) -> float:
    """Median of single launches, each waited for, after three that warm up."""
    import torch

    times = []
    for n in range(-3, rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        if n >= 0:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def tensors(dim: int, tokens: int):
    import torch

    heads, kv_heads = SHAPES[dim]
    make = lambda h: torch.randn(1, h, tokens, dim, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    return make(heads), make(kv_heads), make(kv_heads)


def cudnn(dim: int, tokens: int) -> float:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = tensors(dim, tokens)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return milliseconds(
            lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        )


def flex(dim: int, tokens: int, density: float) -> tuple[float, float]:
    """Milliseconds and useful TFLOP/s at a density of causal blocks of 128, the diagonal always seen."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    q, k, v = tensors(dim, tokens)
    heads, blocks = SHAPES[dim][0], tokens // 128
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(blocks, blocks, generator=generator) < density
    seen = (seen | torch.eye(blocks, dtype=torch.bool)).tril()
    full = seen & ~torch.eye(blocks, dtype=torch.bool)

    def ordered(which):
        indices = torch.argsort(which.to(torch.int8), dim=-1, descending=True, stable=True).to(torch.int32)
        count = which.sum(-1).to(torch.int32)
        return count[None, None].cuda(), indices[None, None].cuda()

    def causal(b, h, i, j):
        return i >= j

    mask = BlockMask.from_kv_blocks(
        *ordered(torch.eye(blocks, dtype=torch.bool)), *ordered(full), BLOCK_SIZE=128, mask_mod=causal
    )
    compiled = torch.compile(flex_attention)
    ms = milliseconds(lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True))
    pairs = heads * (int(full.sum()) * 128 * 128 + blocks * 128 * 129 / 2)
    return ms, 4 * dim * pairs / (ms * 1e9)


def fa3_times(program: Path) -> dict[tuple[int, int], float]:
    """Milliseconds of FlashAttention-3 by (D, N)."""
    answer = subprocess.run([str(program), "fwd"], capture_output=True, text=True).stdout
    found = re.findall(r"FA3 fwd hd(\d+) (\d+/\d+) S=(\d+)\s+median\s+([\d.]+) ms", answer)
    return {(int(d), int(s)): float(ms) for d, h, s, ms in found if h == "%d/%d" % SHAPES[int(d)]}


def dense_flops(dim: int, tokens: int) -> float:
    return 2.0 * dim * SHAPES[dim][0] * tokens * (tokens + 1.0)


def measure(arguments) -> dict:
    """Runs everything, peers in turn with ours."""
    import torch

    ours = Ours(arguments.program)
    rows: dict = {"cudnn": {}, "fa3": {}, "flex": {}}
    for dim in SHAPES:
        for tokens in LENGTHS if dim == 128 else DENSE:
            dense = f"dense/D:{dim}/N:{tokens}/portable:0"
            first = cudnn(dim, tokens)
            ours.run(f"^{dense}/")
            second = cudnn(dim, tokens)
            ours.run(f"^({dense}|prefill/D:{dim}/N:{tokens})/")
            rows["cudnn"][dim, tokens] = (first + second) / 2
            torch.cuda.empty_cache()
        if arguments.fa3 and not rows["fa3"]:
            rows["fa3"] = fa3_times(arguments.fa3)
    ours.run("^(near_only|far_only|rescue_rows|top_fixed|top_reach|local_first|local_first_portable|published|head_dimension)/")
    ours.run("^dense/D:.*/portable:1/")
    rows["cudnn"][128, LONGEST] = (rows["cudnn"][128, LONGEST] + cudnn(128, LONGEST)) / 2
    if not arguments.no_flex:
        for density in (0.2, 0.1, 0.05):
            try:
                rows["flex"][density] = flex(128, LONGEST, density)
            except Exception as problem:  # a peer that does not run is no reason to lose the rest
                print(f"FlexAttention at {density}: {problem}", file=sys.stderr)
    rows["ours"] = ours
    return rows


def dense_table(rows: dict) -> list[str]:
    lines = [
        "## Dense causal attention",
        "",
        "| D | heads | N | omnisparse ms | TFLOP/s | cuDNN ms | TFLOP/s | over cuDNN | FlashAttention-3 TFLOP/s | portable path TFLOP/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (dim, tokens), theirs in sorted(rows["cudnn"].items(), key=lambda x: (-x[0][0], x[0][1])):
        mine = rows["ours"].get(f"dense/D:{dim}/N:{tokens}/portable:0")
        portable = rows["ours"].get(f"dense/D:{dim}/N:{tokens}/portable:1", "TFLOP/s")
        work = dense_flops(dim, tokens) / 1e9
        third = rows["fa3"].get((dim, tokens))
        lines.append(
            f"| {dim} | {'%d/%d' % SHAPES[dim]} | {tokens} | {mine:.3f} | {work / mine:.0f} | {theirs:.3f} | {work / theirs:.0f} "
            f"| {theirs / mine:.2f} | {f'{work / third:.0f}' if third else '-'} "
            f"| {'-' if math.isnan(portable) else f'{portable:.0f}'} |"
        )
    return lines


def sparse_table(rows: dict) -> list[str]:
    ours = rows["ours"]
    lines = [
        "## Whole prefill attention",
        "",
        "Planted inputs, window 1024, 16 sinks, lists of 32768 rows, far_mass 0.05, budget::ratio; rows that the selector",
        "found active, visible share of the causal pairs, mean share of a row's mass that it saw. Kernels: near and far alone.",
        "Planning: observe, select, gather, pack, as a share of the whole call.",
        "",
        "| D | N | asked active / kept | active | density | recall | call ms | kernels ms | planning | own dense ms | over own dense | over cuDNN |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dim in SHAPES:
        for active, keep in SETTINGS:
            for tokens in LENGTHS:
                name = f"prefill/D:{dim}/N:{tokens}/active:{active}/keep:{keep}"
                if name not in ours.seen:
                    continue
                ms, kernels = ours.get(name), ours.get(name, "kernels")
                dense = ours.get(f"dense/D:{dim}/N:{tokens}/portable:0")
                lines.append(
                    f"| {dim} | {tokens} | {active} / {keep} % | {ours.get(name, 'active'):.1%} | {ours.get(name, 'density'):.2%} "
                    f"| {ours.get(name, 'recall'):.4f} | {ms:.3f} | {kernels:.3f} | {1 - kernels / ms:.0%} | {dense:.3f} "
                    f"| {dense / ms:.2f} | {rows['cudnn'].get((dim, tokens), math.nan) / ms:.2f} |"
                )
    lines += ["", "Stages at 128K, ms:", ""]
    stages = ["near", "classify", "probe", "select", "gather", "pack", "far"]
    lines.append("| D | asked | " + " | ".join(stages[:-1]) + " | far kernel |")
    lines.append("| --- | --- |" + " --- |" * len(stages))
    for dim in SHAPES:
        for active, keep in SETTINGS:
            name = f"prefill/D:{dim}/N:{LONGEST}/active:{active}/keep:{keep}"
            values = [ours.get(name, stage) for stage in stages]
            values[-1] -= values[-2] + values[-3]
            lines.append(f"| {dim} | {active} / {keep} % | " + " | ".join(f"{v:.3f}" for v in values) + " |")
    return lines


def preset_table(rows: dict) -> list[str]:
    ours = rows["ours"]
    lines = [
        "## The default composition",
        "",
        "Whole calls of the presets on planted inputs where 40 % of the rows look far: as they come, where they always plan",
        "(`crossover::never`), and own dense attention, in turn. Calls too short for planning to pay run dense. Active rows include",
        "the rescued ones; they, density and recall are those of the plan.",
        "",
        "| preset | D | N | active | rescued | density | recall | runs | call ms | always planning ms | own dense ms | over own dense | over cuDNN |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for preset, dim, tokens in PRESETS:
        name = f"{preset}/D:{dim}/N:{tokens}/active:40"
        if name not in ours.seen:
            continue
        ms, dense = ours.get(name), ours.get(name, "dense")
        theirs = rows["cudnn"].get((dim, tokens), math.nan)
        lines.append(
            f"| {preset.replace('_portable', ', portable path')} | {dim} | {tokens} | {ours.get(name, 'active'):.1%} "
            f"| {ours.get(name, 'rescued'):.1%} | {ours.get(name, 'density'):.2%} | {ours.get(name, 'recall'):.4f} "
            f"| {'dense' if ours.get(name, 'runs_dense') else 'sparse'} | {ms:.3f} | {ours.get(name, 'plans'):.3f} | {dense:.3f} "
            f"| {dense / ms:.2f} | {'-' if math.isnan(theirs) else f'{theirs / ms:.2f}'} |"
        )
    return lines


def dimensions_table(rows: dict) -> list[str]:
    ours = rows["ours"]
    lines = [
        "## Other head dimensions",
        "",
        f"28/4 heads, {DIMENSION_TOKENS} tokens: D up to 64 runs the kernels of 64, up to 128 those of 128, beyond that the portable ones of 256.",
        "Sparse is 15 / 5 % as above. TFLOP/s count the D that was given.",
        "",
        "| D | dense ms | TFLOP/s | sparse ms | dense over sparse |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in sorted((n for n in ours.seen if n.startswith("head_dimension/")), key=lambda n: int(re.findall(r"D:(\d+)", n)[0])):
        ms, some = ours.get(name), ours.get(name, "sparse")
        dim = re.findall(r"D:(\d+)", name)[0]
        lines.append(f"| {dim} | {ms:.3f} | {ours.get(name, 'TFLOP/s'):.0f} | {some:.3f} | {ms / some:.2f} |")
    return lines


def crossover(rows: dict, active: int, keep: int) -> int | None:
    """The shortest length from which on the whole sparse call beats own dense."""
    ours, shortest = rows["ours"], None
    for tokens in reversed(LENGTHS):
        sparse = ours.get(f"prefill/D:128/N:{tokens}/active:{active}/keep:{keep}")
        if not sparse < ours.get(f"dense/D:128/N:{tokens}/portable:0"):
            break
        shortest = tokens
    return shortest


def goals_table(rows: dict) -> list[str]:
    ours = rows["ours"]
    lines = ["## Goals", "", "| case | must | goal | measured |", "| --- | --- | --- | --- |"]

    def add(case: str, must: str, goal: str, measured: str) -> None:
        lines.append(f"| {case} | {must} | {goal} | {measured} |")

    def dense_ms(dim: int, tokens: int = LONGEST) -> float:
        return ours.get(f"dense/D:{dim}/N:{tokens}/portable:0")

    for dim, goal in ((128, "1.25x"), (64, "1.2x")):
        ratios = [rows["cudnn"][dim, tokens] / dense_ms(dim, tokens) for tokens in DENSE]
        heads = "%d/%d" % SHAPES[dim]
        add(f"dense D {dim}, {heads} heads, 8K-128K, over cuDNN", "1.05x", goal, f"{min(ratios):.2f}-{max(ratios):.2f}x")
    rate = dense_flops(128, LONGEST) / 1e9 / dense_ms(128)
    near = ours.get(f"near_only/D:128/N:{LONGEST}/window:1024", "TFLOP/s")
    add("near, window 1024, 16 sinks, 128K, D 128, over own dense rate", "60 %", "80 %", f"{near / rate:.0%} ({near:.0f} TFLOP/s)")
    for clustered, text in ((0, "scattered"), (1, "runs of 64")):
        far = ours.get(f"far_only/D:128/N:{LONGEST}/clustered:{clustered}", "TFLOP/s")
        add(f"far, 10 % kept ({text}), 40 % active, over own dense rate", "70 %", "85 %", f"{far / rate:.0%} ({far:.0f} TFLOP/s)")
    for (active, keep), must, goal in zip(SETTINGS, ("6x", "12x"), ("12x", "20x")):
        name = f"prefill/D:128/N:{LONGEST}/active:{active}/keep:{keep}"
        ms = ours.get(name)
        add(f"planning's share of the call, 128K, {active} / {keep} %", "30 %", "15 %", f"{1 - ours.get(name, 'kernels') / ms:.0%}")
        add(f"whole prefill, 128K, {active} / {keep} %, over cuDNN dense", must, goal, f"{rows['cudnn'][128, LONGEST] / ms:.1f}x")
        shortest = crossover(rows, active, keep)
        add(f"crossover against own dense, {active} / {keep} %", "16K", "8K", f"{shortest // 1024}K" if shortest else "none")
    extra = ours.get(f"rescue_rows/D:128/N:{LONGEST}", "extra")
    add("rescuing 5 % of the rows, over 5 % of own dense", "1.4x", "1.1x", f"{extra / (0.05 * dense_ms(128)):.2f}x")
    for name, text in (("top_fixed", "top-b"), ("top_reach", "reach and top-b")):
        add(f"{text} of 128K scores, 16 rows", "40 us", "20 us", f"{ours.get(f'{name}/lists:16/keys:{LONGEST}', 'us'):.1f} us")
    return lines


def draw(rows: dict, path: Path) -> bool:
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    ours = rows["ours"]
    lengths = [n for n in LENGTHS if (128, n) in rows["cudnn"]]
    figure, axes = plt.subplots(figsize=(7, 4.5))
    axes.plot(lengths, [rows["cudnn"][128, n] for n in lengths], "o--", label="cuDNN, dense")
    axes.plot(lengths, [ours.get(f"dense/D:128/N:{n}/portable:0") for n in lengths], "s--", label="omnisparse, dense")
    for active, keep in SETTINGS:
        times = [ours.get(f"prefill/D:128/N:{n}/active:{active}/keep:{keep}") for n in lengths]
        axes.plot(lengths, times, "^-", label=f"omnisparse, {active} % active, {keep} % kept")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{n // 1024}K" for n in lengths])
    axes.set_xlabel("tokens")
    axes.set_ylabel("ms, planning included")
    axes.set_title(f"Causal prefill, D 128, 28/4 heads, bf16, {ours.context.get('gpu', '')}")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=lambda name: Path(name).resolve())
    parser.add_argument("--fa3", type=lambda name: Path(name).resolve(), help="a FlashAttention-3 program to run beside")
    parser.add_argument("--no-flex", action="store_true", help="leave FlexAttention out: it compiles for half a minute")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent / "results")
    parser.add_argument("--revision", default="", help="of the sources that the program was built from")
    arguments = parser.parse_args()
    import torch

    rows = measure(arguments)
    smi = ["nvidia-smi", "--query-gpu=name,power.limit,clocks.max.sm,driver_version", "--format=csv,noheader"]
    card = subprocess.run(smi, capture_output=True, text=True).stdout.splitlines()
    lines = [
        "# Prefill attention on an NVIDIA GPU",
        "",
        f"{card[0] if card else torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
        + (f", revision {arguments.revision}" if arguments.revision else "")
        + ". bfloat16, batch 1, causal.",
        "One run, both sides in turn, medians of single launches that are each waited for. TFLOP/s count visible pairs only.",
        "`python3 bench/cuda_peers.py build/cuda/bench/bench_cuda_attention`",
        "",
    ]
    lines += [*goals_table(rows), "", *dense_table(rows), "", *sparse_table(rows), "", *preset_table(rows), "", *dimensions_table(rows)]
    if rows["flex"]:
        lines += ["", "## FlexAttention at 128K, D 128", "", "Blocks of 128, the same for all heads.", ""]
        lines += ["| density | ms | useful TFLOP/s |", "| --- | --- | --- |"]
        lines += [f"| {density:.0%} | {ms:.1f} | {rate:.0f} |" for density, (ms, rate) in rows["flex"].items()]
    if draw(rows, arguments.folder / "cuda_attention.svg"):
        lines += ["", "![time over length](cuda_attention.svg)"]
    (arguments.folder / "cuda_attention.md").write_text("\n".join(lines) + "\n")
    (arguments.folder / "cuda_attention.json").write_text(json.dumps(rows["ours"].seen, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
