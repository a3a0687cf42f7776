"""Figures of a run: the results matrix, and the growth of its dictionaries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cl_ovq.evaluation.dictionaries import DictionaryRecord
from cl_ovq.evaluation.metrics import Matrix


def matrix_figure(matrix: Matrix, title: str) -> Figure:
    """Draw a results matrix as a heat map: rows are moments of training, columns test experiences."""
    rows, columns = matrix.shape
    figure = Figure(figsize=(1.6 + 0.75 * columns, 1.4 + 0.55 * rows), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    axes.set_xticks(range(columns), [str(j + 1) for j in range(columns)])
    axes.set_yticks(range(rows), ["before", *(f"after {i}" for i in range(1, rows))])
    axes.set_xlabel("test experience")
    axes.set_ylabel("training")
    axes.set_title(title, fontsize="medium")
    figure.colorbar(image, label="accuracy")
    return figure


def growth_figure(records: Sequence[DictionaryRecord], capacity: int, title: str) -> Figure:
    """Draw slots in use and effective size over training, with the boundaries between experiences.

    The horizontal axis counts the tokens written since training began, also where an experience starts with an empty
    dictionary.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    tokens = _cumulative([record.tokens for record in records])
    axes.plot(tokens, [record.size for record in records], label="slots in use")
    axes.plot(tokens, [record.effective_size for record in records], label="effective size", linestyle="--")
    axes.axhline(capacity, color="grey", linewidth=0.8, label="capacity")
    for i in range(1, len(records)):
        if records[i].experience != records[i - 1].experience:
            axes.axvline(tokens[i - 1], color="grey", linestyle=":", linewidth=0.8)
    axes.set_xlabel("tokens written (dotted: a new experience)")
    axes.set_ylabel("slots per head")
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize="medium")
    axes.legend(loc="best", fontsize="small")
    return figure


def _cumulative(tokens: Sequence[float]) -> list[float]:
    """Return running totals of a counter that starts again at every reset."""
    base, last, totals = 0.0, 0.0, []
    for count in tokens:
        if count < last:
            base += last
        totals.append(base + count)
        last = count
    return totals
