"""A study's rows over the bytes that they carry, where it has an axis `budget`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cl_ovq.metric_names import title
from cl_ovq.runs.result import carried_bytes
from cl_ovq.strategies import sees_all

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cl_ovq.studies.tables import RowResult, StudyResult

BUDGET = "budget"
METHOD = "method"


def sizes_figure(study: StudyResult) -> Figure:
    """Draw the quantity of every row over its bytes, with confidence intervals.

    A line joins the rows that differ in their `budget` only; rows that see all data, or carry nothing, are dashed lines
    across, and so are those whose bytes are unknown, which the legend says. Rows that differ in more than `budget` and
    `method` are in different panels.

    Args:
        study: has the axis `budget`.
    """
    from cl_ovq.evaluation.drawing import legend, new_figure
    from cl_ovq.evaluation.style import point_style

    lines = _grouped(study.rows, (BUDGET,))
    names = dict.fromkeys(_name(rows[0], keep_method=True) for rows in lines)
    styles = {name: point_style(number) for number, name in enumerate(names)}
    panels = list(dict.fromkeys(_name(rows[0], keep_method=False) for rows in lines))
    figure = new_figure(1.5 + 3.6 * len(panels), 3.8)
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        for rows in lines:
            if _name(rows[0], keep_method=False) == panel:
                _draw(axes, study, rows, styles)
        axes.set_xscale("log")
        axes.set_xlabel("bytes carried across tasks")
        axes.set_title(panel, fontsize="medium")
        axes.grid(linewidth=0.4)
    figure.axes[0].set_ylabel(title(study.quantities[0]))
    legend(figure, *figure.axes)
    figure.suptitle(study.study.title, fontsize="medium")
    return figure


def _draw(axes: Axes, study: StudyResult, rows: Sequence[RowResult], styles: dict[str, dict[str, Any]]) -> None:
    name = _name(rows[0], keep_method=True)
    found = [(row.mean(carried_bytes), study.metric(row, study.quantities[0])) for row in rows]
    sized = sorted((size, one.mean, one.interval or 0.0) for size, one in found if one is not None and size)
    if sized and not sees_all(rows[0].runs[0].config):
        sizes, means, spreads = zip(*sized, strict=True)
        axes.errorbar(sizes, means, yerr=spreads, markersize=4, **styles[name], label=name)
        return
    for size, one in found:
        if one is not None:
            label = f"{name} (bytes unknown)" if size is None else name
            axes.axhline(one.mean, linewidth=1, **(styles[name] | {"linestyle": "--", "marker": ""}), label=label)


def _grouped(rows: Sequence[RowResult], without: Sequence[str]) -> list[list[RowResult]]:
    groups: dict[tuple[str, ...], list[RowResult]] = {}
    for row in rows:
        key = tuple(f"{axis}={label}" for axis, label in row.labels.items() if axis not in without)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _name(row: RowResult, *, keep_method: bool) -> str:
    """Its method, or what else tells it apart."""
    if keep_method and METHOD in row.labels:
        return row.labels[METHOD]
    return ", ".join(label for axis, label in row.labels.items() if axis not in (BUDGET, METHOD))
