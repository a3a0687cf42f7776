"""Figures of a run: the results matrix, and the growth, the owners and the entries of its dictionaries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from cl_ovq.evaluation.dictionaries import DictionaryRecord
from cl_ovq.evaluation.drawing import (
    NUMBERED,
    TICKS,
    heat_map,
    legend,
    mark_experiences,
    marked,
    name_experiences,
    name_height,
    new_figure,
    number_cells,
    plain,
    raster,
    thinned,
)
from cl_ovq.evaluation.metrics import Matrix
from cl_ovq.evaluation.plateaus import cumulative, growth_plateaus
from cl_ovq.evaluation.slot_statistics import SlotStatistics
from cl_ovq.evaluation.style import GREY, PALETTE, SCALE, task_color
from cl_ovq.metric_names import matrix_label, words
from cl_ovq.mixers import PersistentDictionary

OWNERS = 10  # colours that can be told apart
ENTRIES = 10_000  # points of a figure
POINTS = 1000  # that are drawn one by one in PDF and SVG; more of them are a picture in it


def matrix_figure(
    matrix: Matrix, title: str, quantity: str = "accuracy", labels: Sequence[str] = (), spread: Matrix | None = None
) -> Figure:
    """Draw a results matrix as a heat map: rows are moments of training, columns test experiences.

    Args:
        matrix: as in a result.
        title: above the figure.
        quantity: what it holds; anything but accuracy has the sign turned.
        labels: what each experience holds, see `name_experiences`.
        spread: over the runs of which the matrix is the mean; None for a single run.
    """
    experiences = matrix.shape[1]
    numbered, cells = experiences <= NUMBERED, raster(matrix)
    width = 0.75 if experiences <= 10 else 0.5
    figure = (
        new_figure(max(3.2, 1.6 + width * experiences), 2.0 + 0.55 * experiences + name_height(labels))
        if numbered
        else new_figure(7.2, 6.0)
    )
    axes, scale = figure.subplots(), color_scale([cells], quantity)
    image = heat_map(axes, cells, experiences, scale)
    if numbered:
        number_cells(axes, cells, scale, spread)
        name_experiences(axes, labels)
    axes.set_xlabel("test experience")
    axes.set_ylabel("training" if experiences < TICKS else "training: experiences learned")
    axes.set_title(plain(title), fontsize="medium")
    figure.colorbar(image, label=matrix_label(quantity))
    return figure


def mean_matrix_figure(matrices: Sequence[Matrix], title: str, quantity: str, labels: Sequence[str] = ()) -> Figure:
    """Draw the mean of results matrices over seeds; with their standard deviation (n - 1), where there are several.

    Args:
        matrices: of each seed.
        title: above the figure.
        quantity: what they hold; anything but accuracy has the sign turned.
        labels: what each experience holds, see `name_experiences`.
    """
    spread = np.std(matrices, axis=0, ddof=1) if len(matrices) > 1 else None
    return matrix_figure(np.mean(matrices, axis=0), title, quantity, labels, spread)


def age_figure(by_age: Sequence[float | None], title: str, quantity: str = "accuracy") -> Figure:
    """Draw what is left of an experience over the number of those learned since.

    Args:
        by_age: as in a result.
        title: above the figure.
        quantity: what it is; anything but accuracy has the sign turned.
    """
    axes = _curve({age: value for age, value in enumerate(by_age) if value is not None}, title, quantity)
    axes.set_xticks(marked(0, len(by_age) - 1))
    axes.set_xlabel("experiences learned since")
    axes.set_ylabel(f"{matrix_label(quantity)}, mean over experiences")
    return axes.figure


def seen_figure(seen: Sequence[float | None], title: str, quantity: str = "accuracy") -> Figure:
    """Draw the average over the experiences learned so far, after each of them.

    Args:
        seen: as in a result.
        title: above the figure.
        quantity: what it is, with the sign that it has.
    """
    axes = _curve({i: value for i, value in enumerate(seen, start=1) if value is not None}, title, quantity)
    axes.set_xticks(marked(1, len(seen)))
    axes.set_xlabel("experiences learned")
    axes.set_ylabel(f"{words(quantity)} on those experiences")
    return axes.figure


def _curve(measured: Mapping[int, float], title: str, quantity: str) -> Any:
    """Return axes with a curve through what was measured."""
    axes = new_figure(6.4, 3.6).subplots()
    axes.plot(*thinned(list(measured), list(measured.values())), marker="o" if len(measured) <= NUMBERED else "")
    if quantity == "accuracy":
        axes.set_ylim(0, 1)
    axes.set_title(plain(title), fontsize="medium")
    return axes


def color_scale(matrices: Sequence[Matrix], quantity: str) -> tuple[float, float]:
    """Return the ends of the scale on which matrices are drawn.

    A loss has no scale of its own: from the worst to the best that was measured.
    """
    measured = np.concatenate([matrix[np.isfinite(matrix)] for matrix in matrices])
    if quantity == "accuracy" or not measured.size:
        return 0.0, 1.0
    return float(measured.min()), float(measured.max())


def growth_figure(records: Sequence[DictionaryRecord], capacity: float, title: str) -> Figure:
    """Draw slots in use and effective size over training, with the boundaries between experiences.

    The horizontal axis counts the tokens written since training began, also where an experience starts with an empty
    dictionary.
    """
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    tokens = cumulative([record.tokens for record in records])
    axes.plot(*thinned(tokens, [record.size for record in records]), label="slots in use")
    effective = thinned(tokens, [record.effective_size for record in records])
    axes.plot(*effective, label="effective size", linestyle="--")
    rests = [
        (
            plateau.start_tokens,
            (tokens[-1] if plateau.end_tokens is None else plateau.end_tokens) - plateau.start_tokens,
        )
        for plateau in growth_plateaus(records)
    ]
    if rests:
        whole = axes.get_xaxis_transform()  # from the bottom of the axes to their top
        axes.broken_barh(rests, (0, 1), transform=whole, color=PALETTE[0], alpha=0.08, label="plateau")
    axes.axhline(capacity, color=GREY, linewidth=0.8, label="capacity")
    begins = [tokens[i - 1] for i in range(1, len(records)) if records[i].experience != records[i - 1].experience]
    mark_experiences(axes, begins, "tokens written")
    axes.set_ylabel("slots per head")
    axes.set_ylim(bottom=0)
    axes.set_title(plain(title), fontsize="medium")
    legend(figure, axes)
    return figure


def ownership_figure(statistics: Sequence[SlotStatistics], title: str) -> Figure:
    """Draw the slots in use after each experience, stacked by the experience that gave most of their tokens.

    In long streams a band is of several experiences in a row.
    """
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    experiences = [each.experience for each in statistics]
    tasks = max(len(each.owners) for each in statistics)
    parts = np.array_split(np.arange(tasks), min(tasks, OWNERS))
    bands = [[sum(each.owners[part[0] : part[-1] + 1]) for each in statistics] for part in parts]
    colors = [task_color(number, len(parts)) for number in range(len(parts))]
    axes.stackplot(experiences, bands, labels=[_span(part[0] + 1, part[-1] + 1) for part in parts], colors=colors)
    axes.set_xticks(marked(experiences[0], experiences[-1]))
    axes.set_xlabel("experiences learned")
    axes.set_ylabel("slots per head, by owner")
    axes.set_title(plain(title), fontsize="medium")
    legend(figure, axes)
    return figure


def entries_figure(dictionary: PersistentDictionary, title: str) -> Figure:
    """Draw the key means of a dictionary's first head on their two principal axes, coloured by owner.

    The area of a point is proportional to the logarithm of its slot's tokens. Of very many entries every few are drawn.
    """
    figure = new_figure(5.4, 4.4)
    axes = figure.subplots()
    used = (dictionary.state.counts[0, 0] > 0).nonzero().flatten()
    used = used[:: math.ceil(len(used) / ENTRIES)]
    keys = dictionary.state.keys[0, 0][used].double().cpu()
    counts = dictionary.state.counts[0, 0][used].double().cpu()
    owner = dictionary.written[:, 0][:, used].argmax(0).cpu().numpy()
    centred = keys - keys.mean(0)
    basis = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    points = (centred @ basis.T).numpy()
    sizes, tasks = (4 + 4 * counts.log1p().numpy()) / max(1, len(used) / 1000), len(dictionary.written)
    x, y = points[:, 0], points[:, -1]  # one axis only, where there are fewer entries than axes
    shown: dict[str, Any] = {"alpha": 0.8, "rasterized": len(used) > POINTS}
    if tasks <= OWNERS:
        for task in np.unique(owner).tolist():
            own = owner == task
            color = task_color(task, tasks)
            axes.scatter(x[own], y[own], s=sizes[own], color=color, label=_span(task + 1, task + 1), **shown)
        legend(figure, axes)
    else:
        drawn = axes.scatter(x, y, s=sizes, c=owner + 1, vmin=1, vmax=tasks, cmap=SCALE, **shown)
        figure.colorbar(drawn, label="experience")
    axes.set_xlabel("first principal axis of the key means")
    axes.set_ylabel("second")
    axes.set_title(plain(title), fontsize="medium")
    return figure


def _span(first: int, last: int) -> str:
    return f"experience {first}" if first == last else f"experiences {first} to {last}"
