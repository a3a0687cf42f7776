"""A study's rows on sequences of other lengths: a table and a figure for each stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cl_ovq.quantities import words
from cl_ovq.seeds import aggregate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cl_ovq.studies.tables import RowResult


def rows_by_stream(rows: Sequence[RowResult]) -> dict[str, list[RowResult]]:
    """Return the rows that were evaluated at other lengths, by the name of their stream."""
    found: dict[str, list[RowResult]] = {}
    for row in rows:
        if row.runs[0].lengths:
            found.setdefault(row.runs[0].config["stream"]["name"], []).append(row)
    return found


def lengths_table(stream: str, rows: Sequence[RowResult]) -> str:
    """Return a table in Markdown: a row for each of the study's, a column for each length, over seeds."""
    tokens = [record["tokens"] for record in rows[0].runs[0].lengths]
    trained = rows[0].runs[0].config["stream"].get("length")
    quantity = words(rows[0].runs[0].quantity)
    head = [f"{stream}: {quantity} over tokens", *map(str, tokens), "state bytes at the first", "at the last"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        values = [aggregate([run.lengths[i]["value"] for run in row.runs]) for i in range(len(tokens))]
        cells = [
            f"{found.mean:.3f}" + ("" if found.interval is None else f" +- {found.interval:.3f}") for found in values
        ]
        first, *_, last = row.runs[0].lengths
        lines.append([_name(row), *cells, f"{first['state_bytes']:,}", f"{last['state_bytes']:,}"])
    note = "" if trained is None else f"Trained at {trained} tokens.\n"
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + f"\n\n{note}"


def lengths_of(rows: Sequence[RowResult]) -> Figure:
    """Draw the mean over seeds of each row over length, over distance and over the bytes of the state."""
    from cl_ovq.evaluation.lengths import lengths_figure

    return lengths_figure({_name(row): _mean(row) for row in rows}, rows[0].runs[0].config["stream"].get("length"))


def _name(row: RowResult) -> str:
    return list(row.labels.values())[-1]


def _mean(row: RowResult) -> list[dict[str, Any]]:
    """Records like a run's, with means over the runs of the row; distances that not every run has are left out."""
    records = []
    for at in zip(*(run.lengths for run in row.runs), strict=True):
        near = [{d["nearest"]: d["value"] for d in record["distances"]} for record in at]
        common = sorted(set.intersection(*map(set, near)))
        distances = [{"nearest": n, "value": sum(each[n] for each in near) / len(near)} for n in common]
        value = sum(record["value"] for record in at) / len(at)
        records.append(at[0] | {"value": value, "distances": distances})
    return records
