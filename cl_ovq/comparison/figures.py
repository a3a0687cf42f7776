"""Figures that lay runs beside and over each other; means over the seeds of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cl_ovq.comparison.sources import Group
from cl_ovq.evaluation.metrics import Matrix, seen_average
from cl_ovq.quantities import QUANTITIES, matrix_label, words
from cl_ovq.results import carried_bytes, to_matrix


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
    """Return the results matrix, averaged over seeds."""
    matrices = [to_matrix(run.matrix) for run in group.runs.values()]
    return np.mean(matrices, axis=0)


def matrices_figure(groups: Sequence[Group], quantity: str) -> Figure:
    """Draw the results matrices side by side, on one scale."""
    matrices = [mean_matrix(group) for group in groups]
    first = matrices[0]
    # A loss has no scale of its own: from the worst to the best that was measured.
    low, high = (0.0, 1.0) if quantity == "accuracy" else (float(f(matrices)) for f in (np.nanmin, np.nanmax))
    height, width = 1.5 + 0.4 * first.shape[0], 1.0 + (1.0 + 0.55 * first.shape[1]) * len(groups)
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, group, matrix in zip(panels, groups, matrices, strict=True):
        image = axes.imshow(matrix, vmin=low, vmax=high, cmap="viridis", aspect="auto")
        for (i, j), value in np.ndenumerate(matrix):
            if not np.isnan(value):
                color = "white" if value < low + 0.6 * (high - low) else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize="x-small")
        axes.set_xticks(range(matrix.shape[1]), [str(j + 1) for j in range(matrix.shape[1])])
        axes.set_title(group.name, fontsize="small", wrap=True)
    rows = first.shape[0]
    panels[0].set_yticks(range(rows), ["before", *(f"after {i}" for i in range(1, rows))])
    figure.supxlabel("test experience", fontsize="small")
    figure.colorbar(image, ax=list(panels), label=matrix_label(quantity))
    return figure


def average_figure(groups: Sequence[Group], quantity: str) -> Figure:
    """Draw the mean of the quantity on the experiences learned so far, with each seed as a thin line."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, group in enumerate(groups):
        curves = QUANTITIES[quantity] * np.array([seen_average(to_matrix(run.matrix)) for run in group.runs.values()])
        x = np.arange(1, curves.shape[1] + 1)
        color = f"C{number}"
        for curve in curves if len(curves) > 1 else ():
            axes.plot(x, curve, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(x, curves.mean(0), color=color, marker="o", markersize=4, label=group.name)
    axes.set_xlabel("experiences learned")
    axes.set_ylabel(f"{words(quantity)} on those experiences")
    axes.set_xticks(x)
    axes.legend(fontsize="small")
    return figure


def memory_figure(groups: Sequence[Group]) -> Figure:
    """Draw forgetting against the bytes carried from task to task, a point per seed."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for group in groups:
        points = [
            (carried_bytes(run) / 1e6, forgetting)
            for run in group.runs.values()
            if (forgetting := run.metrics.get("forgetting")) is not None
        ]
        axes.plot([x for x, _ in points], [y for _, y in points], "o", alpha=0.7, label=group.name)
    axes.set_xlabel("memory carried from task to task (MB)")
    axes.set_ylabel("forgetting")
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlim(left=0)
    axes.legend(fontsize="small")
    return figure


def growth_figure(groups: Sequence[Group]) -> Figure:
    """Draw the slots in use over training steps, one line per run with a dictionary."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, group in enumerate(groups):
        label = group.name
        for run in group.runs.values():
            history = run.dictionary.get("history") or []
            if history:
                steps, sizes = [r["step"] for r in history], [r["size"] for r in history]
                axes.plot(steps, sizes, color=f"C{number}", alpha=0.8, linewidth=1, label=label)
                label = "_"  # one entry in the legend for all seeds
    axes.set_xlabel("training steps")
    axes.set_ylabel("slots in use per head")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    return figure
