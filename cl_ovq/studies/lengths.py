"""A study's rows on sequences of other lengths, in tables and figures, and with dictionaries of other capacities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cl_ovq.quantities import words
from cl_ovq.seeds import aggregate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cl_ovq.studies.tables import RowResult


def comparable_rows(rows: Sequence[RowResult]) -> dict[str, list[RowResult]]:
    """Return the rows that were evaluated at other lengths, those of one stream and the same lengths together.

    They are named after their stream, and after the lengths too where one stream has several groups.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[RowResult]] = {}
    for row in rows:
        lengths = tuple(record["tokens"] for record in row.runs[0].lengths)
        if lengths:
            groups.setdefault((row.runs[0].config["stream"]["name"], lengths), []).append(row)
    streams = [stream for stream, _ in groups]
    return {
        stream if streams.count(stream) == 1 else f"{stream}_{'_'.join(map(str, lengths))}": found
        for (stream, lengths), found in groups.items()
    }


def lengths_table(name: str, rows: Sequence[RowResult]) -> str:
    """Return a table in Markdown: a row for each of the study's, a column for each length, over seeds."""
    records = rows[0].runs[0].lengths
    quantity = words(rows[0].runs[0].quantity)
    head = [f"{name}: {quantity} over tokens", *(str(record["tokens"]) for record in records)]
    head += ["state bytes at the first", "at the last"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for label, row in _named(rows).items():
        values = [aggregate([run.lengths[i]["value"] for run in row.runs]) for i in range(len(records))]
        state = [row.runs[0].lengths[i]["state_bytes"] for i in (0, -1)]
        lines.append([label, *(found.shown() for found in values), *(f"{size:,}" for size in state)])
    trained = _trained(rows)
    note = "" if trained is None else f"Trained at {trained} tokens.\n"
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + f"\n\n{note}"


def capacities_table(row: RowResult) -> str:
    """Return a row's table in Markdown: a line for each capacity of its dictionaries at test time, over seeds."""
    records = row.runs[0].capacities
    lengths = sorted({record["tokens"] for record in records})
    quantity = words(row.runs[0].quantity)
    lines = [[f"{row.name}: slots", *(f"{quantity} at {length} tokens" for length in lengths), "state bytes"]]
    lines.append(["---:"] * len(lines[0]))
    for capacity in dict.fromkeys(record["capacity"] for record in records):
        at = {record["tokens"]: i for i, record in enumerate(records) if record["capacity"] == capacity}
        values = [aggregate([run.capacities[at[length]]["value"] for run in row.runs]) for length in lengths]
        state = records[at[lengths[-1]]]["state_bytes"]
        lines.append([str(capacity), *(found.shown() for found in values), f"{state:,}"])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def mean_lengths_figure(rows: Sequence[RowResult]) -> Figure:
    """Draw the mean over seeds of each row over length, over distance and over the bytes of the state."""
    from cl_ovq.evaluation.lengths import lengths_figure, mean_records

    means = {label: mean_records([run.lengths for run in row.runs]) for label, row in _named(rows).items()}
    return lengths_figure(means, _trained(rows))


def _trained(rows: Sequence[RowResult]) -> int | None:
    return rows[0].runs[0].config["stream"].get("length")


def _named(rows: Sequence[RowResult]) -> dict[str, RowResult]:
    """Rows by the labels that tell them apart; a single one by all of its labels."""
    apart = [axis for axis in rows[0].labels if len({row.labels.get(axis) for row in rows}) > 1] or [*rows[0].labels]
    return {", ".join(row.labels.get(axis, "-") for axis in apart): row for row in rows}
