"""Figures of a run: the results matrix, and the growth, the owners and the entries of its dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from cl_ovq.evaluation.census import Census
from cl_ovq.evaluation.dictionaries import DictionaryRecord
from cl_ovq.evaluation.metrics import Matrix
from cl_ovq.evaluation.plateaus import cumulative, growth_plateaus
from cl_ovq.mixers import PersistentDictionary
from cl_ovq.quantities import matrix_label


def matrix_figure(matrix: Matrix, title: str, quantity: str = "accuracy") -> Figure:
    """Draw a results matrix as a heat map: rows are moments of training, columns test experiences.

    Args:
        matrix: as in a result.
        title: above the figure.
        quantity: what it holds; anything but accuracy has the sign turned.
    """
    rows, columns = matrix.shape
    figure = Figure(figsize=(1.6 + 0.75 * columns, 1.4 + 0.55 * rows), layout="constrained")
    axes = figure.subplots()
    low, high = (0.0, 1.0) if quantity == "accuracy" else (float(np.nanmin(matrix)), float(np.nanmax(matrix)))
    image = axes.imshow(matrix, vmin=low, vmax=high, cmap="viridis", aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            color = "white" if value < low + 0.6 * (high - low) else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color)
    axes.set_xticks(range(columns), [str(j + 1) for j in range(columns)])
    axes.set_yticks(range(rows), ["before", *(f"after {i}" for i in range(1, rows))])
    axes.set_xlabel("test experience")
    axes.set_ylabel("training")
    axes.set_title(title, fontsize="medium")
    figure.colorbar(image, label=matrix_label(quantity))
    return figure


def growth_figure(records: Sequence[DictionaryRecord], capacity: float, title: str) -> Figure:
    """Draw slots in use and effective size over training, with the boundaries between experiences.

    The horizontal axis counts the tokens written since training began, also where an experience starts with an empty
    dictionary.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    tokens = cumulative([record.tokens for record in records])
    axes.plot(tokens, [record.size for record in records], label="slots in use")
    axes.plot(tokens, [record.effective_size for record in records], label="effective size", linestyle="--")
    for i, plateau in enumerate(growth_plateaus(records)):
        end = tokens[-1] if plateau.end_tokens is None else plateau.end_tokens
        axes.axvspan(plateau.start_tokens, end, color="tab:blue", alpha=0.08, label="_" if i else "plateau")
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


def ownership_figure(censuses: Sequence[Census], title: str) -> Figure:
    """Draw the slots in use after each experience, stacked by the experience that gave most of their tokens."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    experiences = [census.experience for census in censuses]
    tasks = max(len(census.owners) for census in censuses)
    bands = [
        [census.owners[task] if task < len(census.owners) else 0.0 for census in censuses] for task in range(tasks)
    ]
    colors = [task_color(task, tasks) for task in range(tasks)]
    axes.stackplot(experiences, bands, labels=[f"experience {task + 1}" for task in range(tasks)], colors=colors)
    axes.set_xticks(experiences)
    axes.set_xlabel("experiences learned")
    axes.set_ylabel("slots per head, by owner")
    axes.set_title(title, fontsize="medium")
    figure.legend(loc="outside right center", fontsize="small")
    return figure


def entries_figure(dictionary: PersistentDictionary, title: str) -> Figure:
    """Draw the key means of a dictionary's first head on their two principal axes, coloured by owner.

    The area of a point is proportional to the logarithm of its slot's tokens.
    """
    figure = Figure(figsize=(5.4, 4.4), layout="constrained")
    axes = figure.subplots()
    used = dictionary.state.counts[0, 0] > 0
    keys = dictionary.state.keys[0, 0][used].double().cpu()
    counts = dictionary.state.counts[0, 0][used].double().cpu()
    owner = dictionary.written[:, 0][:, used].argmax(0).cpu()
    centred = keys - keys.mean(0)
    basis = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    points = (centred @ basis.T).numpy()
    tasks = len(dictionary.written)
    for task in owner.unique().tolist():
        chosen = (owner == task).numpy()
        x, y = points[chosen, 0], points[chosen, -1]  # one axis only, where there are fewer entries than axes
        color, label = task_color(task, tasks), f"experience {task + 1}"
        axes.scatter(x, y, s=4 + 4 * counts.log1p().numpy()[chosen], color=color, label=label, alpha=0.8)
    axes.set_xlabel("first principal axis of the key means")
    axes.set_ylabel("second")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")
    return figure


def task_color(task: int, tasks: int) -> Any:
    """Return the colour of an experience, the same in every figure."""
    return colormaps["viridis"](task / max(1, tasks - 1))
