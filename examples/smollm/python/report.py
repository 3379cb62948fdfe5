"""The table on the terminal, and the self-contained page with table, answers and pictures."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from pictures import draw_frontier, draw_heads, draw_plan, save

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
LEGEND = [
    ("perplexity", "of the second half of the text; lower is better"),
    ("recall", "share of a row's true attention mass that it saw: mean, and the worst 1 % of rows"),
    ("visible", "share of the causal (row, key) pairs that were computed"),
    ("active, rescued", "share of rows that look beyond the near field; that see everything"),
    ("kept", "far tokens in a list, which all active rows of a chunk share"),
    ("attention, plan", "seconds of all layers while the text is read; prefill: everything while it is read"),
    ("cache", "keys and values stored after the text, all layers"),
    ("decode", "attention of all layers, milliseconds for each token of question and answer"),
]


def cells(row: dict) -> list[str]:
    shown = dict(row, cache_bytes=row["cache_bytes"] / 1e6)
    return ["-" if shown[key] is None else form.format(shown[key]) for _, key, form in COLUMNS]


def print_table(rows: list[dict]) -> None:
    """One line a policy."""
    table = [[title for title, _, _ in COLUMNS], *(cells(row) for row in rows)]
    widths = [max(len(line[c]) for line in table) for c in range(len(COLUMNS))]
    for line in table:
        print("  ".join(f"{cell:<{w}}" if c == 0 else f"{cell:>{w}}" for c, (cell, w) in enumerate(zip(line, widths))))


def draw_all(folder: Path, measured: dict) -> list[Path]:
    """Two pictures a sparse policy; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for result in measured["results"]:
        policy = result["row"]["policy"]
        if policy == "full":
            continue
        paths.append(save(draw_plan(policy, result["picture"], measured["tokens"]), folder / f"{policy}_plan.png"))
        paths.append(save(draw_heads(policy, result["heads"]), folder / f"{policy}_heads.png"))
    return paths


def write_frontier(folder: Path, points: list[tuple[str, dict]], full: dict, band: dict) -> Path:
    """Draws perplexity over density; `points` are settings of local_first and their rows."""
    folder.mkdir(parents=True, exist_ok=True)
    return save(draw_frontier(points, full, band), folder / "frontier.png")


def table_html(rows: list[dict]) -> str:
    def line(tag: str, words: list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(word)}</{tag}>" for word in words) + "</tr>"

    body = "".join(line("td", cells(row)) for row in rows)
    return f'<div class="wide"><table>{line("th", [title for title, _, _ in COLUMNS])}{body}</table></div>'


def definitions(pairs: list[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{html.escape(a)}</dt><dd>{html.escape(b)}</dd>" for a, b in pairs) + "</dl>"


def write_page(folder: Path, document: str, question: str, measured: dict, pictures: list[Path]) -> Path:
    """Writes report.html, which holds the pictures themselves and needs no other file."""
    answers = [(result["row"]["policy"], result.get("text", "")) for result in measured["results"]]
    images = "".join(
        f'<img alt="{html.escape(picture.stem)}" '
        f'src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}">'
        for picture in pictures
    )
    page = folder / "report.html"
    page.write_text(
        f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>OmniSparse: a language model reads</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}th,td{{padding:.25rem .6rem;text-align:right;
border-bottom:1px solid #ddd}}th:first-child,td:first-child{{text-align:left}}img{{display:block;max-width:100%;
margin:1.5rem 0}}dt{{font-weight:600}}dd{{margin:0 0 .6rem 0;white-space:pre-wrap}}.wide{{overflow-x:auto}}
</style><h1>SmolLM2-135M-Instruct reads {html.escape(document)}</h1>
<p>{measured["tokens"]} tokens, on the CPU, with attention by OmniSparse.</p>
{table_html([result["row"] for result in measured["results"]])}
<details><summary>What the columns mean</summary>{definitions(LEGEND)}</details>
<h2>{html.escape(question)}</h2>{definitions(answers)}
<h2>What the heads did</h2>{images}</html>
""",
        encoding="utf-8",
    )
    return page
