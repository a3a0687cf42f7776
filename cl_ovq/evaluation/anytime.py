"""Evaluation inside experiences: what accuracy does between the rows of the results matrix."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from avalanche.training.plugins import SupervisedPlugin
from matplotlib.figure import Figure

from cl_ovq.evaluation.drawing import LISTED, legend, mark_experiences, marked, new_figure, plain, thinned
from cl_ovq.evaluation.matrix import MatrixRecorder, Point
from cl_ovq.evaluation.metrics import Matrix
from cl_ovq.evaluation.style import SCALE, task_color
from cl_ovq.metric_names import words
from cl_ovq.seeding import unchanged_randomness

ROWS = 1000  # evaluations of an image


class AnytimeEvaluation(SupervisedPlugin):
    """Evaluates every so many training steps on the experiences that training has come to.

    Training goes on as if nothing had been: no generator is moved, and evaluation writes to no dictionary. It must come
    behind Avalanche's clock.

    Args:
        recorder: of the run.
        test: the stream to evaluate on.
        every_steps: training steps between two evaluations.
    """

    def __init__(self, recorder: MatrixRecorder, test: Any, every_steps: int) -> None:
        super().__init__()
        self.recorder = recorder
        self.test = test
        self.every_steps = every_steps

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Evaluate, if it is time to."""
        if strategy.clock.train_iterations % self.every_steps:
            return
        row, self.recorder.row = self.recorder.row, None
        with unchanged_randomness():
            strategy.eval(self.test[: strategy.clock.train_exp_counter + 1])
        self.recorder.row = row


def as_array(points: Sequence[Point], experiences: int) -> Matrix:
    """Return points as `[P, T]`, NaN for experiences that training had not come to."""
    values = np.full((len(points), experiences), np.nan)
    for row, point in zip(values, points, strict=True):
        row[: len(point.values)] = point.values
    return values


def anytime_figure(points: Sequence[Point], title: str, quantity: str = "accuracy") -> Figure:
    """Draw each experience's curve over training steps, and the mean over those that training has come to.

    In long streams the curves of single experiences are the rows of an image under the mean.
    """
    experiences = max(len(point.values) for point in points)
    if experiences > LISTED - 1:
        return _anytime_image(points, experiences, title, quantity)
    figure = new_figure(7.2, 3.6)
    axes = figure.subplots()
    steps, values = [point.step for point in points], as_array(points, experiences)
    for column in range(experiences):
        color, label = task_color(column, experiences), f"experience {column + 1}"
        axes.plot(*thinned(steps, values[:, column]), "-", color=color, linewidth=1, label=label)
    axes.plot(*thinned(steps, np.nanmean(values, axis=1)), "-", color="black", linewidth=1.6, label="mean")
    begins = [before.step for before, point in itertools.pairwise(points) if point.experience != before.experience]
    mark_experiences(axes, begins, "training step")
    axes.set_ylabel(words(quantity))
    axes.set_title(plain(title), fontsize="medium")
    legend(figure, axes)
    return figure


def _anytime_image(points: Sequence[Point], experiences: int, title: str, quantity: str) -> Figure:
    figure = new_figure(7.2, 6.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    above.plot(*thinned([point.step for point in points], [np.mean(point.values) for point in points]), color="black")
    above.set_ylabel(f"mean {words(quantity)}")
    above.set_title(plain(title), fontsize="medium")
    chosen = np.unique(np.linspace(0, len(points) - 1, min(len(points), ROWS)).round().astype(int))
    shown = [points[number] for number in chosen]
    steps = [point.step for point in shown]
    # An image has equal steps; the last evaluations of an experience come where they come.
    places = np.linspace(steps[0], steps[-1], len(steps))
    nearest = np.searchsorted(steps, places, side="right") - 1
    values = as_array(shown, experiences)[nearest].T
    half = max(0.5, (steps[-1] - steps[0]) / max(1, 2 * (len(steps) - 1)))
    extent = (steps[0] - half, steps[-1] + half, experiences + 0.5, 0.5)
    low, high = (0, 1) if quantity == "accuracy" else (None, None)
    image = below.imshow(values, vmin=low, vmax=high, cmap=SCALE, aspect="auto", extent=extent)
    below.set_yticks(marked(1, experiences))
    below.set_ylabel("test experience")
    below.set_xlabel("training step")
    figure.colorbar(image, ax=below, label=words(quantity))
    return figure
