"""The pictures of the report: what each head did, one head's plan, quality over density."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.colors import ListedColormap, to_rgb  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402

CLASSES = ["lazy", "active", "rescued"]
CLASS_COLORS = ["#c3ccd6", "#2f6db3", "#e0702a"]
NEAR_COLOR = "#7f8c9b"
# JSON key, title, unit, color map, least top of the scale.
HEAD_MAPS = [
    ("active", "rows that look far", "share of rows", "Blues", 1.0),
    ("rescued", "rows that see everything", "share of rows", "Oranges", 0.2),
    ("kept", "tokens kept in a list", "tokens", "Purples", 64),
    ("recall", "true attention mass seen", "share of mass", "viridis", 1.0),
]


def save(figure: plt.Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def draw_heads(policy: str, heads: list[list[dict]]) -> plt.Figure:
    """Four maps over layers and heads: active rows, rescued rows, kept tokens, recall."""
    figure, axes = plt.subplots(1, len(HEAD_MAPS), figsize=(13.5, 6.6), sharey=True, layout="constrained")
    for axis, (key, title, unit, colors, least_top) in zip(axes, HEAD_MAPS):
        values = np.array([[head[key] for head in layer] for layer in heads])
        bottom = np.floor(10 * values.min()) / 10 if key == "recall" else 0.0
        top = max(values.max(), least_top)
        image = axis.imshow(values, aspect="auto", cmap=colors, vmin=min(bottom, 0.9 * top), vmax=top)
        layers, count = values.shape
        axis.hlines(np.arange(1, layers) - 0.5, -0.5, count - 0.5, color="white", lw=0.4)
        axis.vlines(np.arange(1, count) - 0.5, -0.5, layers - 0.5, color="white", lw=0.4)
        axis.set(title=f"{title}\nmean {values.mean():.3g}", xlabel="query head", xticks=range(count))
        axis.title.set_fontsize(11)
        bar = figure.colorbar(image, ax=axis, location="bottom", shrink=0.92, pad=0.02)
        bar.set_label(unit)
    axes[0].set_ylabel("layer (0 reads the text first)")
    figure.suptitle(f"{policy}: what each head of each layer did", fontsize=14)
    return figure


def visible_colors(plan: dict, tokens: int, size: int) -> np.ndarray:
    """The plan as an image [size, size, 3] of queries over keys: each pixel mixes the colors of the
    pairs that it stands for, white where a row does not look."""
    keys = np.arange(tokens)
    kinds = np.empty(tokens, dtype=np.uint8)
    for first, end, kind in plan["rows"]:
        kinds[first:end] = kind
    palette = np.array([to_rgb(c) for c in ("white", NEAR_COLOR, *CLASS_COLORS[1:])], dtype=np.float32)
    edges = np.linspace(0, tokens, size + 1).astype(int)
    image = np.ones((size, size, 3), dtype=np.float32)
    in_list = np.zeros((len(plan["kept"]), tokens), dtype=bool)
    for chunk, kept in enumerate(plan["kept"]):
        in_list[chunk, kept] = True
    for y in range(size):
        rows = np.arange(edges[y], edges[y + 1])
        causal = keys <= rows[:, None]
        near = causal & ((rows[:, None] - keys < plan["window"]) | (keys < plan["sinks"]))
        kind = kinds[rows][:, None]
        seen = np.where((kind == 1) & in_list[rows // plan["chunk_rows"]], 2, 0)
        seen = np.where(kind == 2, 3, seen)
        seen = np.where(near, 1, seen) * causal
        image[y] = np.add.reduceat(palette[seen].mean(axis=0), edges[:-1], axis=0) / np.diff(edges)[:, None]
    return image


def draw_plan(policy: str, plan: dict, tokens: int) -> plt.Figure:
    """One head's plan over positions, with each row's class beside it."""
    figure, (axis, strip) = plt.subplots(
        1, 2, figsize=(8.6, 7.8), width_ratios=[24, 1], sharey=True, layout="constrained"
    )
    extent = (0, tokens, tokens, 0)
    axis.imshow(visible_colors(plan, tokens, min(tokens, 900)), extent=extent, interpolation="antialiased")
    axis.plot([0, tokens], [0, tokens], color="#444444", lw=0.8)
    axis.set(xlim=(0, tokens), xlabel="key position (tokens)", ylabel="query position (tokens)")
    for first in range(plan["chunk_rows"], tokens, plan["chunk_rows"]):
        axis.axhline(first, color="#444444", lw=0.6, ls=":")
    axis.set_title(f"{policy}: what head {plan['head']} of layer {plan['layer']} looks at", fontsize=13)
    entries = [
        Patch(color=NEAR_COLOR, label="near field (window and sinks): every row"),
        Patch(color=CLASS_COLORS[1], label="kept tokens: active rows"),
        Patch(color=CLASS_COLORS[2], label="everything: rescued rows"),
        Patch(color=CLASS_COLORS[0], label="at the right: a lazy row"),
    ]
    axis.legend(handles=entries, loc="upper right", title="dotted: a new list begins", framealpha=0.95)
    kinds = np.empty(tokens)
    for first, end, kind in plan["rows"]:
        kinds[first:end] = kind
    strip.imshow(kinds[:, None], extent=(0, 1, tokens, 0), aspect="auto", cmap=ListedColormap(CLASS_COLORS),
                 vmin=0, vmax=2, interpolation="nearest")
    shares = ", ".join(f"{name} {np.mean(kinds == kind):.0%}" for kind, name in enumerate(CLASSES))
    strip.set(xticks=[], title="row\nclass")
    axis.set_xlabel(f"key position (tokens)\nrows: {shares}")
    return figure


def draw_frontier(points: list[tuple[str, dict]], full: dict, band: dict) -> plt.Figure:
    """Perplexity over density for several settings, between the near field alone and full attention."""
    figure, axis = plt.subplots(figsize=(8.6, 5.4), layout="constrained")
    order = sorted(points, key=lambda point: point[1]["density"])
    density = [row["density"] for _, row in order]
    quality = [row["perplexity"] for _, row in order]
    best = full["perplexity"]
    top = max(max(quality) * 1.02, best * 1.05)
    axis.axhspan(best, best * 1.01, color="#dfeadf", label="within 1 % of full attention")
    axis.axhline(best, color="#4a7a4a", lw=1, ls="--", label=f"full attention: {best:.2f} at 100 %")
    axis.plot(density, quality, "o-", color=CLASS_COLORS[1], label="local_first")
    for name, row in order:
        axis.annotate(name, (row["density"], row["perplexity"]), xytext=(7, 6), textcoords="offset points",
                      fontsize=9)
    axis.annotate(f"near field alone:\n{band['perplexity']:.2f} at {band['density']:.0%}",
                  (band["density"], top), xytext=(band["density"], best + 0.8 * (top - best)),
                  arrowprops={"arrowstyle": "->", "color": "#555555"}, ha="center", fontsize=9, color="#555555")
    axis.set(xlim=(0, max(0.5, max(density) * 1.25)), ylim=(best * 0.995, top))
    axis.set(xlabel="density: visible pairs over causal pairs", ylabel="perplexity of the second half (lower is better)")
    axis.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.set_title("Quality over work", fontsize=13)
    axis.grid(alpha=0.3)
    axis.legend(loc="upper right")
    return figure
