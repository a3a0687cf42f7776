"""A comparison as a table in the terminal, as data, and as one self-contained page."""

from __future__ import annotations

import base64
import html
import io
import json
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from cl_ovq.comparison.differences import Comparison
from cl_ovq.config.load import decisive
from cl_ovq.quantities import BETTER, title
from cl_ovq.results import write_atomically

NAMES = {
    **{metric: title(metric) for metric in BETTER},
    "dictionary/size": "dictionary slots",
    "dictionary/bytes": "dictionary bytes",
    "wall_seconds": "seconds",
    "peak_memory_bytes": "peak memory",
}
NOTE = (
    "Each column is compared with the first: difference of the means with its 95 % confidence interval, paired over "
    "the seeds that both have. p-values are two-sided (Student's paired test, or Welch's where no seeds match), "
    "corrected by Holm's method for all tests of this table; differences of time and memory are not tested."
)
STYLE = (
    "body{font-family:sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.3em .8em;border-bottom:1px solid #ddd;text-align:right}"
    "td{vertical-align:top}td:first-child,th:first-child{text-align:left}.better{color:#060}.worse{color:#a00}"
    "img{max-width:100%}pre{background:#f6f6f6;padding:1em;overflow:auto}"
)


def rows(comparison: Comparison) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return the table: for each metric, for each group its value, its difference and the verdict (empty if none)."""
    found = []
    for metric, means in comparison.means.items():
        cells = []
        for group, mean in enumerate(means):
            difference = comparison.of(metric, group)
            value = "-" if mean is None else _number(mean)
            if difference is None:
                cells.append((value, "", ""))
                continue
            text = _number(difference.difference, signed=True)
            if difference.interval is not None:
                text += f" +- {_number(difference.interval)}"
            verdict = ""
            if difference.corrected is not None:
                verdict = f"{difference.verdict}, p = {difference.corrected:.2g}"
            cells.append((value, text, verdict))
        found.append((NAMES[metric], cells))
    return found


def to_table(comparison: Comparison) -> Table:
    """Return the table for the terminal."""
    table = Table("", title="compared with the first", title_justify="left", caption=NOTE, caption_justify="left")
    for group in comparison.groups:
        count = len(group.runs)
        table.add_column(f"{group.name}\n({count} seed{'s' if count > 1 else ''})", justify="right")
    styles = {"better": "green", "worse": "red"}
    for name, cells in rows(comparison):
        texts = []
        for value, difference, verdict in cells:
            style = styles.get(verdict.partition(",")[0], "dim")
            lines = [value, difference, f"[{style}]{verdict}[/]" if verdict else ""]
            texts.append("\n".join(filter(None, lines)))
        table.add_row(name, *texts)
    return table


def to_json(comparison: Comparison) -> str:
    """Return means, differences and tests as JSON."""
    return json.dumps(
        {
            "groups": [{"name": group.name, "seeds": list(group.runs)} for group in comparison.groups],
            "means": comparison.means,
            "differences": [asdict(d) | {"verdict": d.verdict} for d in comparison.differences],
        },
        indent=2,
        allow_nan=False,
    )


def write_page(comparison: Comparison, path: Path) -> None:
    """Write one HTML file that needs no other: table, figures, configurations' differences."""
    from cl_ovq.comparison.figures import all_figures

    head = "".join(f"<th>{html.escape(group.name)}<br>{len(group.runs)} seeds</th>" for group in comparison.groups)
    body = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(
            f"<td>{html.escape(value)}<br>{html.escape(difference)}"
            f"<br><span class='{verdict.partition(',')[0]}'>{html.escape(verdict)}</span></td>"
            for value, difference, verdict in cells
        )
        + "</tr>"
        for name, cells in rows(comparison)
    )
    pictures = []
    for heading, figure in all_figures(comparison.groups).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        data = base64.b64encode(buffer.getvalue()).decode()
        pictures.append(f"<h2>{heading}</h2><img alt='{heading}' src='data:image/png;base64,{data}'>")
    title = " / ".join(group.name for group in comparison.groups)
    write_atomically(
        path,
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>"
        f"<table><tr><th></th>{head}</tr>{body}</table><p>{html.escape(NOTE)}</p>{''.join(pictures)}"
        f"<h2>Where the configurations differ</h2><pre>{html.escape(_configurations(comparison))}</pre></html>\n",
    )


def _configurations(comparison: Comparison) -> str:
    trees = [decisive(group.config) for group in comparison.groups]
    keys = sorted({key for tree in trees for key in tree} - {"seed"})
    lines = [
        f"{key}: {' | '.join(str(tree.get(key, '-')) for tree in trees)}"
        for key in keys
        if len({str(tree.get(key)) for tree in trees}) > 1
    ]
    return "\n".join(lines) or "nowhere"


def _number(value: float, *, signed: bool = False) -> str:
    sign = "+" if signed and value >= 0 else ""
    if abs(value) >= 1e6:
        return f"{sign}{value / 1e6:.1f} M"
    return f"{sign}{value:.3f}" if abs(value) < 10 else f"{sign}{value:.0f}"
