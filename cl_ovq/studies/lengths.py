"""A study's rows on sequences of other lengths, in tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cl_ovq.report.runs import lengths_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cl_ovq.report.table import Table
    from cl_ovq.studies.tables import RowResult


def comparable_rows(rows: Sequence[RowResult]) -> dict[str, list[RowResult]]:
    """Return the rows that were evaluated at other lengths, those of one stream and the same lengths together.

    Runs that diverged are left out, and rows of which all did. The groups are named after their stream, and after the
    lengths too where one stream has several groups.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[RowResult]] = {}
    for row in rows:
        lengths = tuple(record["tokens"] for record in row.sound[0].lengths) if row.sound else ()
        if lengths:
            groups.setdefault((row.sound[0].config["stream"]["name"], lengths), []).append(row)
    streams = [stream for stream, _ in groups]
    return {
        stream if streams.count(stream) == 1 else f"{stream}_{'_'.join(map(str, lengths))}": found
        for (stream, lengths), found in groups.items()
    }


def comparable_tables(rows: Sequence[RowResult]) -> dict[str, Table]:
    """Return the table of each group of rows that were evaluated at other lengths, by its name."""
    tables = {}
    for name, found in comparable_rows(rows).items():
        groups = {label: [run.lengths for run in row.sound] for label, row in _named(found).items()}
        trained = _trained(found)
        tables[name] = lengths_table(groups, name, "" if trained is None else f"Trained at {trained} tokens.")
    return tables


def mean_lengths_figure(rows: Sequence[RowResult]) -> Figure:
    """Draw the mean over seeds of each row over length, over distance and over the bytes of the state."""
    from cl_ovq.evaluation.length_generalization import lengths_figure, mean_records

    means = {label: mean_records([run.lengths for run in row.sound]) for label, row in _named(rows).items()}
    return lengths_figure(means, _trained(rows))


def _trained(rows: Sequence[RowResult]) -> int | None:
    return rows[0].sound[0].config["stream"].get("length")


def _named(rows: Sequence[RowResult]) -> dict[str, RowResult]:
    """Rows by the labels that tell them apart; a single one by all of its labels."""
    apart = [axis for axis in rows[0].labels if len({row.labels.get(axis) for row in rows}) > 1] or [*rows[0].labels]
    return {", ".join(row.labels.get(axis, "-") for axis in apart): row for row in rows}
