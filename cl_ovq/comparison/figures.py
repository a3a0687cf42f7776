"""Figures that lay runs beside and over each other; means over the seeds of each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cl_ovq.evaluation.drawing import (
    INCHES,
    NUMBERED,
    TICKS,
    heat_map,
    legend,
    marked,
    name_experiences,
    name_height,
    new_figure,
    number_cells,
    plain,
    raster,
    shortened,
    thinned,
)
from cl_ovq.evaluation.figures import color_scale
from cl_ovq.evaluation.metrics import Matrix, seen_average, to_matrix
from cl_ovq.evaluation.style import line_style
from cl_ovq.metric_names import QUANTITIES, matrix_label, words
from cl_ovq.runs.groups import Group
from cl_ovq.runs.result import carried_bytes, common_labels

PANELS = 12  # matrices of a figure


def all_figures(groups: Sequence[Group]) -> dict[str, Figure]:
    """Return every figure by its heading; growth only where a run has a dictionary."""
    quantity = next(iter(groups[0].runs.values())).quantity
    figures = {
        "Results matrices": matrices_figure(groups, quantity),
        f"{words(quantity).capitalize()} over experiences": average_figure(groups, quantity),
        "Forgetting against memory": memory_figure(groups),
    }
    if any(run.dictionary.get("history") for group in groups for run in group.runs.values()):
        figures["Growth of the dictionaries"] = growth_figure(groups)
    return figures


def mean_matrix(group: Group) -> Matrix:
    """Return the results matrix, averaged over the seeds that did not diverge, over all where all did."""
    runs = list((group.sound or group.runs).values())
    total = to_matrix(runs[0].matrix)
    for run in runs[1:]:
        total += to_matrix(run.matrix)
    return total / len(runs)


def matrices_figure(groups: Sequence[Group], quantity: str) -> Figure:
    """Draw the results matrices side by side, on one scale; of very many groups the first `PANELS`."""
    matrices = [raster(mean_matrix(group)) for group in groups[:PANELS]]
    experiences = len(next(iter(groups[0].runs.values())).matrix[0])
    numbered = 0.55 * experiences * len(matrices) < INCHES - 2
    across = len(matrices) if numbered else min(len(matrices), 4)
    down = math.ceil(len(matrices) / across)
    width = 1.0 + (1.0 + 0.55 * experiences if numbered else 3.4) * across
    labels = common_labels([run for group in groups for run in group.runs.values()]) if numbered else []
    figure = new_figure(width, 1.9 + 0.4 * experiences + name_height(labels) if numbered else 0.6 + 3.2 * down)
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    scale = color_scale(matrices, quantity)
    for axes in panels:
        axes.set_axis_off()
    for axes, group, matrix in zip(panels, groups, matrices, strict=False):
        axes.set_axis_on()
        image = heat_map(axes, matrix, experiences, scale, TICKS if numbered else 10)
        if numbered:
            number_cells(axes, matrix, scale)
        name_experiences(axes, labels)
        axes.set_title(plain(group.name) if numbered else shortened(group.name), fontsize="small", wrap=True)
    figure.supxlabel("test experience", fontsize="small")
    figure.colorbar(image, ax=list(panels), label=matrix_label(quantity))
    if len(groups) > PANELS:
        figure.suptitle(f"the first {PANELS} of {len(groups)}", fontsize="small")
    return figure


def average_figure(groups: Sequence[Group], quantity: str) -> Figure:
    """Draw the mean of the quantity on the experiences learned so far, with each seed as a thin line."""
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    for number, group in enumerate(groups):
        runs = (group.sound or group.runs).values()
        curves = QUANTITIES[quantity] * np.array([seen_average(to_matrix(run.matrix)) for run in runs])
        x = np.arange(1, curves.shape[1] + 1)
        style = line_style(number)
        for curve in curves if len(curves) > 1 else ():
            axes.plot(*_measured(x, curve), alpha=0.25, linewidth=0.8, **style)
        mean = _measured(x, curves.mean(0))
        marker = "o" if len(mean[0]) <= NUMBERED else ""
        axes.plot(*mean, **style, marker=marker, markersize=4, label=group.name)
    axes.set_xlabel("experiences learned")
    axes.set_ylabel(f"{words(quantity)} on those experiences")
    axes.set_xticks(marked(1, len(x)))
    legend(figure, axes)
    return figure


def _measured(x: Matrix, curve: Matrix) -> tuple[Matrix, Matrix]:
    """Return the points of a curve that were measured, which a line then joins."""
    known = ~np.isnan(curve)
    return x[known], curve[known]


def memory_figure(groups: Sequence[Group]) -> Figure:
    """Draw forgetting against the bytes carried from task to task, a point per seed where they are known."""
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    for group in groups:
        points = [
            (carried / 1e6, forgetting)
            for run in group.sound.values()
            if (forgetting := run.metrics.get("forgetting")) is not None and (carried := carried_bytes(run)) is not None
        ]
        axes.plot([x for x, _ in points], [y for _, y in points], "o", alpha=0.7, label=group.name)
    axes.set_xlabel("memory carried across tasks (MB)")
    axes.set_ylabel("forgetting")
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlim(left=0)
    legend(figure, axes)
    return figure


def growth_figure(groups: Sequence[Group]) -> Figure:
    """Draw the slots in use over training steps, one line per run with a dictionary."""
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    for number, group in enumerate(groups):
        label = group.name
        for run in group.runs.values():
            history = run.dictionary.get("history") or []
            if history:
                steps, sizes = [r["step"] for r in history], [r["size"] for r in history]
                axes.plot(*thinned(steps, sizes), **line_style(number), alpha=0.8, linewidth=1, label=label)
                label = "_"  # one entry in the legend for all seeds
    axes.set_xlabel("training steps")
    axes.set_ylabel("slots in use per head")
    axes.set_ylim(bottom=0)
    legend(figure, axes)
    return figure
