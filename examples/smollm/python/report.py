"""The table, the pictures and the self-contained page that the demo ends with."""

from __future__ import annotations

import base64
import html
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402

# Column title, JSON key, format.
COLUMNS = [
    ("policy", "policy", "{}"),
    ("perplexity", "perplexity", "{:.2f}"),
    ("recall mean", "recall_mean", "{:.3f}"),
    ("recall p1", "recall_p1", "{:.3f}"),
    ("visible", "density", "{:.1%}"),
    ("active", "active", "{:.1%}"),
    ("rescued", "rescued", "{:.1%}"),
    ("kept", "kept", "{:.0f}"),
    ("attention s", "attention_s", "{:.2f}"),
    ("plan s", "plan_s", "{:.2f}"),
    ("prefill s", "prefill_s", "{:.2f}"),
    ("cache MB", "cache_bytes", "{:.1f}"),
    ("decode ms", "decode_ms", "{:.2f}"),
]
CLASSES = ["lazy: near field only", "active: near field and list", "rescued: everything"]
COLORS = ["#dfe6ee", "#5b8fc9", "#e07b39"]


def cells(row: dict) -> list[str]:
    shown = dict(row, cache_bytes=row["cache_bytes"] / 1e6)
    return [form.format(shown[key]) for _, key, form in COLUMNS]


def print_table(rows: list[dict]) -> None:
    """One line a policy. Perplexity: of the second half of the text. Recall: share of a row's true
    attention mass that it saw. Attention, planning: seconds of all layers. Decode: attention a token."""
    table = [[title for title, _, _ in COLUMNS], *(cells(row) for row in rows)]
    widths = [max(len(line[c]) for line in table) for c in range(len(COLUMNS))]
    for line in table:
        print("  ".join(f"{cell:<{w}}" if c == 0 else f"{cell:>{w}}" for c, (cell, w) in enumerate(zip(line, widths))))


def heat_maps(result: dict) -> plt.Figure:
    """Per layer and head: active share, kept tokens, recall."""
    keys = [("active", "active rows (share)", 1.0), ("kept", "kept tokens a list", None), ("recall", "mean recall", 1.0)]
    figure, axes = plt.subplots(1, 3, figsize=(11, 6.2), constrained_layout=True)
    for axis, (key, title, top) in zip(axes, keys):
        values = np.array([[head[key] for head in layer] for layer in result["heads"]])
        image = axis.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=top, origin="upper")
        axis.set(title=title, xlabel="query head", ylabel="layer")
        axis.set_xticks(range(values.shape[1]))
        figure.colorbar(image, ax=axis, shrink=0.85)
    figure.suptitle(f"{result['row']['policy']}: what each head does")
    return figure


def plan_picture(result: dict, tokens: int, layer: int, head: int) -> plt.Figure:
    """One head's plan: what each query position sees of the keys."""
    plan = result["picture"]
    figure, axis = plt.subplots(figsize=(7.6, 7), constrained_layout=True)
    for first, last, kind in plan["rows"]:
        axis.fill_between([0, first, last], [first, first, first], [last, last, last], color=COLORS[kind], lw=0)
        axis.fill([first, last, last], [first, first, last], color="white", lw=0)
    for c, kept in enumerate(plan["kept"]):
        first, last = c * plan["chunk_rows"], min(tokens, (c + 1) * plan["chunk_rows"])
        if kept and len(kept) < tokens:
            axis.vlines(kept, np.maximum(first, kept), last, color="#123f75", lw=0.35, alpha=0.7)
    axis.plot([0, tokens], [0, tokens], color="#444444", lw=0.8)
    axis.set(xlim=(0, tokens), ylim=(tokens, 0), xlabel="key position (tokens)", ylabel="query position (tokens)")
    axis.set_title(f"{result['row']['policy']}: plan of layer {layer}, head {head}")
    entries = [Patch(color=color, label=name) for color, name in zip(COLORS, CLASSES)]
    entries.append(Patch(color="#123f75", label="kept tokens of a chunk"))
    axis.legend(handles=entries, loc="upper right", framealpha=0.95)
    return figure


def save(figure: plt.Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def write_report(folder: Path, document: str, question: str, measured: dict) -> list[Path]:
    """Writes the PNGs and report.html, which holds them all; returns their paths, the page last."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[Path] = []
    for result in measured["results"]:
        name = result["row"]["policy"]
        if name == "full":
            continue
        pictures.append(save(heat_maps(result), folder / f"{name}_heads.png"))
        figure = plan_picture(result, measured["tokens"], measured["picture_layer"], measured["picture_head"])
        pictures.append(save(figure, folder / f"{name}_plan.png"))

    def line(tag: str, words: list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(word)}</{tag}>" for word in words) + "</tr>"

    rows = [line("th", [title for title, _, _ in COLUMNS])]
    rows += [line("td", cells(result["row"])) for result in measured["results"]]
    answers = "".join(
        f"<dt>{html.escape(result['row']['policy'])}</dt><dd>{html.escape(result.get('text', ''))}</dd>"
        for result in measured["results"]
    )
    images = "".join(
        f'<img alt="{picture.stem}" src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}">'
        for picture in pictures
    )
    page = folder / "report.html"
    page.write_text(
        f"""<!doctype html><meta charset="utf-8"><title>OmniSparse demo</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}th,td{{padding:.25rem .6rem;text-align:right;
border-bottom:1px solid #ddd}}th:first-child,td:first-child{{text-align:left}}img{{max-width:100%;margin:1rem 0}}
dt{{font-weight:600}}dd{{margin:0 0 .6rem 0}}.wide{{overflow-x:auto}}</style>
<h1>SmolLM2-135M reads {html.escape(document)}</h1>
<p>{measured["tokens"]} tokens. Perplexity of the second half; recall is the share of a row's true attention mass that it
saw; visible is the share of causal (row, key) pairs; attention and planning are seconds over all layers; decode is
attention time a token.</p>
<div class="wide"><table>{"".join(rows)}</table></div>
<h2>{html.escape(question)}</h2><dl>{answers}</dl>
{images}
""",
        encoding="utf-8",
    )
    return [*pictures, page]


def write_frontier(folder: Path, points: list[dict], ends: dict) -> Path:
    """Perplexity over density for several settings, between the band and full attention."""
    figure, axis = plt.subplots(figsize=(7.5, 5), constrained_layout=True)
    order = sorted(points, key=lambda row: row["density"])
    axis.plot([row["density"] for row in order], [row["perplexity"] for row in order], "o-", label="local_first")
    for result, marker in zip(ends["results"], "s^"):
        row = result["row"]
        axis.plot(row["density"], row["perplexity"], marker, ms=8, label=row["policy"])
        if row["policy"] == "full":
            axis.axhline(row["perplexity"], color="#999999", lw=0.8, ls="--")
            axis.axhline(row["perplexity"] * 1.01, color="#999999", lw=0.8, ls=":", label="full + 1 %")
    axis.set(xlabel="visible pairs / causal pairs", ylabel="perplexity of the second half", xlim=(0, 1.03))
    axis.set_title("Quality over density")
    axis.grid(alpha=0.3)
    axis.legend()
    return save(figure, folder / "frontier.png")
