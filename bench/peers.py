"""Dense causal attention on the CPU beside PyTorch's SDPA: one run, alternating, minima, ratios.

    python3 bench/peers.py build/native/bench/bench_attention

Installs PyTorch's wheel into build/peers when `import torch` fails. Writes bench/results/cpu_dense.md.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHAPES = [(64, n, 9, 3) for n in (2048, 4096, 8192, 16384)] + [(128, n, 28, 4) for n in (2048, 4096, 8192, 16384)]


def with_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        venv = ROOT / "build" / "peers"
        if Path(sys.prefix) == venv:
            sys.exit("peers: PyTorch could not be imported even from its own environment")
        if not (venv / "bin" / "python").exists():
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
            subprocess.run([venv / "bin" / "python", "-m", "pip", "install", "-q", "torch"], check=True)
        os.execv(venv / "bin" / "python", [str(venv / "bin" / "python"), *sys.argv])


def torch_seconds(dim: int, tokens: int, heads: int, kv_heads: int) -> float:
    import torch

    q = torch.randn(1, heads, tokens, dim)
    k, v = torch.randn(1, kv_heads, tokens, dim), torch.randn(1, kv_heads, tokens, dim)
    best = 1e9
    for _ in range(3):
        start = time.perf_counter()
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        best = min(best, time.perf_counter() - start)
    return best


def our_seconds(program: str, dim: int, tokens: int) -> float:
    command = [program, f"--benchmark_filter=^dense/D:{dim}/N:{tokens}/", "--benchmark_format=json",
               "--benchmark_repetitions=3", "--benchmark_min_time=0.1"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return min(b["real_time"] for b in answer["benchmarks"] if b["run_type"] == "iteration") / 1e3


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    with_torch()
    import torch

    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    lines = [
        "# Dense causal attention on the CPU, float32, beside PyTorch's SDPA",
        "",
        f"{processor()}, {threads} threads, PyTorch {torch.__version__}, built with -march=native, revision {revision}.",
        "One run, both sides in turn, the fastest of three; GFLOP/s count 2 D Hq N^2.",
        "`python3 bench/peers.py build/native/bench/bench_attention`",
        "",
        "| D | heads | N | omnisparse ms | GFLOP/s | PyTorch ms | GFLOP/s | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dim, tokens, heads, kv_heads in SHAPES:
        theirs = torch_seconds(dim, tokens, heads, kv_heads)
        ours = our_seconds(sys.argv[1], dim, tokens)
        theirs = min(theirs, torch_seconds(dim, tokens, heads, kv_heads))
        work = 2 * dim * heads * tokens**2 / 1e9
        lines.append(
            f"| {dim} | {heads}/{kv_heads} | {tokens} | {ours * 1e3:.1f} | {work / ours:.0f} | {theirs * 1e3:.1f} "
            f"| {work / theirs:.0f} | {theirs / ours:.2f} |"
        )
        print(lines[-1], flush=True)
    (ROOT / "bench" / "results" / "cpu_dense.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
