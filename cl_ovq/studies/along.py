"""A study's rows along the stream, where they are evaluated after some experiences (`evaluation.rows`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cl_ovq.evaluation.aggregates import Aggregate, aggregate
from cl_ovq.evaluation.metrics import seen_average, to_matrix
from cl_ovq.metric_names import COLUMNS, QUANTITIES, evenly, words
from cl_ovq.report.table import Number, Table, mean_number
from cl_ovq.runs.result import carried_bytes
from cl_ovq.studies.sizes import METHOD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cl_ovq.studies.tables import RowResult


def rows_along(rows: Sequence[RowResult]) -> list[RowResult]:
    """Return the rows that are evaluated after some experiences, where any is after several: one point is no curve.

    Runs that diverged are left out.
    """
    found = [row for row in rows if row.sound and row.sound[0].config["evaluation"].get("rows")]
    return found if any(len(row.sound[0].config["evaluation"]["rows"]) > 1 for row in found) else []


def along(row: RowResult) -> dict[int, Aggregate]:
    """Return the quantity on the experiences learned so far, over seeds, by how many these are."""
    values: dict[int, list[float]] = {}
    for run in row.sound:
        for learned, value in enumerate(seen_average(to_matrix(run.matrix)), start=1):
            if not math.isnan(value):
                values.setdefault(learned, []).append(QUANTITIES[run.quantity] * value)
    return {learned: aggregate(found) for learned, found in sorted(values.items())}


def along_table(rows: Sequence[RowResult]) -> Table:
    """Return a row for each of the study's: the quantity after so many experiences, and the bytes carried to the last.

    Args:
        rows: of `rows_along`. Of more moments than a table has room for, it shows some.
    """
    found = {row.name: along(row) for row in rows}
    moments = sorted({learned for values in found.values() for learned in values})
    shown = [moments[place - 1] for place in evenly(len(moments), COLUMNS)]
    quantity = rows[0].sound[0].quantity
    table = Table(f"{words(quantity)} after experiences", *map(str, shown), "memory")
    for row in rows:
        cells = [mean_number(found[row.name].get(learned), quantity) for learned in shown]
        table.add(row.name, *cells, Number(row.mean(carried_bytes) or None, "memory_bytes"))
    return table


def along_figure(rows: Sequence[RowResult], heading: str) -> Figure:
    """Draw the quantity over the experiences learned, a line for each method, with confidence intervals.

    Rows that differ in more than `method`, in their budget of bytes for example, are in different panels.

    Args:
        rows: of `rows_along`.
        heading: above the figure.
    """
    from cl_ovq.evaluation.drawing import legend, new_figure, plain
    from cl_ovq.evaluation.style import line_style

    names = {row.name: row.labels.get(METHOD, row.name) for row in rows}
    styles = {name: line_style(number) for number, name in enumerate(dict.fromkeys(names.values()))}
    panels: dict[str, list[RowResult]] = {}
    for row in rows:
        others = [label for axis, label in row.labels.items() if axis != METHOD]
        panels.setdefault(", ".join(others) if METHOD in row.labels else "", []).append(row)
    figure = new_figure(1.0 + 3.6 * len(panels), 3.8)
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (panel, found) in zip(drawn, panels.items(), strict=True):
        for row in found:
            values = along(row)
            means, spreads = [one.mean for one in values.values()], [one.interval or 0.0 for one in values.values()]
            name = names[row.name]
            axes.errorbar(list(values), means, yerr=spreads, marker="o", markersize=3, **styles[name], label=name)
        axes.set_xscale("log")
        axes.set_xlabel("experiences learned")
        axes.set_title(plain(panel), fontsize="medium")
        axes.grid(linewidth=0.4)
    figure.axes[0].set_ylabel(f"{words(rows[0].sound[0].quantity)} on those experiences")
    legend(figure, *figure.axes)
    figure.suptitle(plain(heading), fontsize="medium")
    return figure
