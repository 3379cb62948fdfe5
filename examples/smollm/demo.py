"""The demo: a real language model reads a long document with full and with sparse attention.

`sh cmake/demo.sh` builds the C++ program, makes the Python environment and calls this file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "python"))

from checkpoint import cached_weights, find_gguf  # noqa: E402
from report import draw_all, print_table, write_frontier, write_page  # noqa: E402
from tokens import encode_document, encode_question, load_tokenizer  # noqa: E402

POLICIES = ["full", "published", "local_first", "band"]
GPL = Path("/usr/share/common-licenses/GPL-3")
LICENSE = Path(__file__).parents[2] / "LICENSE"
# The frontier: from short lists to long ones.
FRONTIER = [
    {"recall": 0.8, "least": 0.4},
    {"recall": 0.9, "least": 0.4},
    {"recall": 0.93},
    {},
    {"recall": 0.96},
    {"recall": 0.97, "least": 0.6},
]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="demo.sh", description="Reads a text with SmolLM2 under full and sparse attention."
    )
    parser.add_argument("--text", type=Path, help="a UTF-8 text file (default: the GPL-3)")
    parser.add_argument("--ask", default="What does this license say about patents?", help="a question about it")
    parser.add_argument("--policy", default=",".join(POLICIES), help=f"some of {', '.join(POLICIES)}")
    parser.add_argument("--recall", type=float, help="share of the probe rows' mass that each head's list holds, in (0, 1]")
    parser.add_argument("--epsilon", type=float, help="far mass above which a row is active, in [0, 1]")
    parser.add_argument("--least", type=float, help="coverage below which a row is rescued, in [0, 1]")
    parser.add_argument("--window", type=int, help="tokens of the near field (local_first, band)")
    parser.add_argument("--budget", type=int, help="tokens of every kept list, in place of --recall")
    parser.add_argument("--max-tokens", type=int, default=4096, help="of the text (default 4096, at most 8000)")
    parser.add_argument("--new-tokens", type=int, default=48, help="of the answer (default 48)")
    parser.add_argument("--json", type=Path, help="write the table here, an object a row")
    parser.add_argument("--frontier", action="store_true", help="also plot perplexity over density")
    parser.add_argument("--dump", metavar="LAYERS:FILE", help="write q, k, v of layers for the study example, and stop")
    parser.add_argument("--dump-dtype", choices=["F32", "BF16"], default="F32", help="of --dump")
    parser.add_argument("--program", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, required=True, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.policy.split(",") if name not in POLICIES]
    if unknown:
        parser.error(f"there is no policy {', '.join(unknown)}: choose from {', '.join(POLICIES)}")
    if arguments.dump and not all(n.isdecimal() for n in arguments.dump.partition(":")[0].split(",")):
        parser.error("--dump takes layers and a file, as in --dump 3,12:layer%.safetensors")
    if not 16 <= arguments.max_tokens <= 8000:
        parser.error("--max-tokens must be in [16, 8000]: the model was trained on 8192")
    return arguments


def read_text(path: Path | None) -> tuple[str, Path]:
    chosen = path or (GPL if GPL.exists() else LICENSE)
    try:
        return chosen.read_text(encoding="utf-8", errors="replace"), chosen
    except OSError as problem:
        sys.exit(f"demo: {chosen} cannot be read: {problem.strerror}")


class Program:
    """The C++ program with the model and the request that it reads."""

    def __init__(self, arguments: argparse.Namespace, request: dict) -> None:
        self.arguments = arguments
        self.request = arguments.folder / "request.json"
        self.request.write_text(json.dumps(request))
        self.weights = cached_weights(arguments.folder / "model")

    def call(self, *options: str) -> None:
        command = [self.arguments.program, "--weights", self.weights, "--request", self.request, *options]
        # Threads that wait by spinning fall behind by factors where other programs want the cores too.
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
        code = subprocess.run([str(word) for word in command], env=environment).returncode
        if code != 0:
            sys.exit(code)

    def measure(self, policies: str, new_tokens: int, **changes: float) -> dict:
        """Runs policies with the command line's options, some of them changed."""
        options: list[str] = ["--policy", policies, "--new-tokens", str(new_tokens)]
        for name in ("recall", "epsilon", "least", "window", "budget"):
            value = changes.get(name, getattr(self.arguments, name))
            if value is not None:
                options += [f"--{name}", str(value)]
        result = self.arguments.folder / "result.json"
        self.call("--result", str(result), *options)
        return json.loads(result.read_text())


def measure_frontier(program: Program, folder: Path) -> Path:
    """Runs local_first at several settings beside its two ends, and draws perplexity over density."""
    full, band = (result["row"] for result in program.measure("full,band", 0)["results"])
    points = []
    for number, setting in enumerate(FRONTIER, 1):
        name = ", ".join(f"{key} {value}" for key, value in setting.items()) or "defaults"
        print(f"frontier {number}/{len(FRONTIER)}: local_first, {name}", file=sys.stderr)
        points.append((name, program.measure("local_first", 0, **setting)["results"][0]["row"]))
    return write_frontier(folder, points, full, band)


def main() -> None:
    arguments = parse_arguments()
    text, path = read_text(arguments.text)
    tokenizer = load_tokenizer(find_gguf())
    document = encode_document(tokenizer, text, arguments.max_tokens)
    if len(document) < 16:
        sys.exit(f"demo: {path} has only {len(document)} tokens: give a longer text")
    question = encode_question(tokenizer, arguments.ask)
    end = tokenizer.token_to_id("<|im_end|>")
    program = Program(arguments, {"document": document, "question": question, "end": end})
    if arguments.dump:
        layers, _, target = arguments.dump.partition(":")
        target = target or "layer%.safetensors"
        program.call("--dump-layer", layers, "--dump-to", target, "--dump-dtype", arguments.dump_dtype)
        for layer in layers.split(","):
            print(f"q, k and v of layer {layer}: {target.replace('%', layer, 1)}")
        return

    print(f"{path}: {len(document)} tokens, asked: {arguments.ask}", flush=True)
    measured = program.measure(arguments.policy, arguments.new_tokens)
    rows = [result["row"] for result in measured["results"]]
    print()
    print_table(rows)
    for result in measured["results"]:
        result["text"] = tokenizer.decode(result["answer"], skip_special_tokens=True).strip()
        if arguments.new_tokens > 0:
            print(f"\n{result['row']['policy']} answers: {result['text']}")
    if any(row["policy"] == "published" and row["perplexity"] > 100 for row in rows):
        print(
            "\npublished is the recipe of the paper's figure, for models trained with it: rows it finds lazy output"
            "\nzero. This model never saw that, so its text falls apart; local_first needs no training."
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    folder = arguments.folder / "report"
    pictures = draw_all(folder, measured)
    if arguments.frontier:
        pictures.insert(0, measure_frontier(program, folder))
    page = write_page(folder, path.name, arguments.ask, measured, pictures)
    print()
    for file in [*pictures, page]:
        print(file)


if __name__ == "__main__":
    main()
