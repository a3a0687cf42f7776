"""A comparison as a table in the terminal, as data, and as one self-contained page."""

from __future__ import annotations

import base64
import html
import io
import json
from dataclasses import asdict, replace
from pathlib import Path

from cl_ovq.comparison.cautions import cautions
from cl_ovq.comparison.differences import Comparison
from cl_ovq.config.identity import identity
from cl_ovq.errors import UserError
from cl_ovq.paths import write_atomically
from cl_ovq.report.table import Column, Number, Table, Text, html_page, mean_number, metric_name

BOLD = (
    "Bold: the best mean, if it differs from that of the first column (corrected p < 0.05); in the first column, if "
    "every other mean is worse. Other columns are not tested against each other. Runs that diverged are in no number."
)
NOTE = (
    "Each column is compared with the first: difference of the means with its 95 % confidence interval, paired over "
    "the seeds that both have. p-values are two-sided (Student's paired test, or Welch's where no seeds match), "
    "corrected by Holm's method for all tests of this table; differences of time and memory are not tested."
)
STYLES = {"better": "green", "worse": "red"}


def to_table(comparison: Comparison) -> Table:
    """Return the table: for each metric, for each group its mean, its difference from the first and the verdict."""
    lines = ("", "difference", "verdict")
    columns = [Column(f"{group.name}\n({group.count})", lines=lines) for group in comparison.groups]
    table = Table("", *columns, title="Compared with the first", caption=BOLD, below=NOTE)
    for metric, found in comparison.aggregates.items():
        best, cells = comparison.best(metric), []
        for group, each in enumerate(found):
            cell: list[Number | Text] = [replace(mean_number(each, metric), best=group == best)]
            if (difference := comparison.of(metric, group)) is not None:
                cell.append(Number(difference.difference, metric, spread=difference.interval, signed=True))
                if difference.corrected is not None:
                    verdict = difference.verdict
                    cell.append(Text(f"{verdict}, p = {difference.corrected:.2g}", STYLES.get(verdict, "dim")))
            cells.append(tuple(cell))
        table.add(metric_name(metric), *cells)
    return table


def to_json(comparison: Comparison) -> str:
    """Return means, differences and tests as JSON."""
    return json.dumps(
        {
            "groups": [
                {"name": group.name, "seeds": list(group.runs), "diverged": sorted(group.runs.keys() - group.sound)}
                for group in comparison.groups
            ],
            "cautions": cautions(comparison.groups),
            "means": comparison.means,
            "differences": [asdict(d) | {"verdict": d.verdict} for d in comparison.differences],
        },
        indent=2,
        allow_nan=False,
    )


def write_page(comparison: Comparison, path: Path) -> None:
    """Write one HTML file that needs no other: table, figures, configurations' differences."""
    from cl_ovq.comparison.figures import all_figures

    pictures = []
    for caption, figure in all_figures(comparison.groups).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        data = base64.b64encode(buffer.getvalue()).decode()
        pictures.append(
            f"<h2>{html.escape(caption)}</h2><img alt='{html.escape(caption)}' src='data:image/png;base64,{data}'>"
        )
    pictures.append(f"<h2>Where the configurations differ</h2><pre>{html.escape(_configurations(comparison))}</pre>")
    said = "".join(f"<p class='red'>{html.escape(line)}</p>" for line in cautions(comparison.groups))
    body = said + to_table(comparison).to_html() + "".join(pictures)
    write_atomically(path, html_page(" / ".join(group.name for group in comparison.groups), body))


def write_figures(comparison: Comparison, folder: Path, figure_format: str) -> list[Path]:
    """Write every figure of the page into a file of its own, named after its heading.

    Args:
        comparison: of the runs.
        folder: is made.
        figure_format: one of `FIGURE_FORMATS`.

    Returns:
        The paths.

    Raises:
        UserError: one cannot be written.
    """
    from cl_ovq.comparison.figures import all_figures

    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for heading, figure in all_figures(comparison.groups).items():
            paths.append(folder / f"{heading.lower().replace(' ', '_')}.{figure_format}")
            figure.savefig(paths[-1], dpi=120)
    except OSError as error:
        raise UserError(f"figures: {folder} cannot be written: {error.strerror}") from error
    return paths


def _configurations(comparison: Comparison) -> str:
    trees = [identity(group.config).whole for group in comparison.groups]
    keys = sorted({key for tree in trees for key in tree} - {"seed"})
    lines = [
        f"{key}: {' | '.join(str(tree.get(key, '-')) for tree in trees)}"
        for key in keys
        if len({str(tree.get(key)) for tree in trees}) > 1
    ]
    return "\n".join(lines) or "nowhere"
