"""Evaluation inside experiences: what accuracy does between the rows of the results matrix."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from avalanche.training.plugins import SupervisedPlugin
from matplotlib.figure import Figure

from cl_ovq.evaluation.figures import task_color
from cl_ovq.evaluation.matrix import MatrixRecorder, Point
from cl_ovq.evaluation.metrics import Matrix
from cl_ovq.learning.seeding import unchanged_randomness
from cl_ovq.quantities import words


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
    """Draw each experience's curve over training steps, and the mean over those that training has come to."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    experiences = max(len(point.values) for point in points)
    values = as_array(points, experiences)
    steps = [point.step for point in points]
    for column in range(experiences):
        axes.plot(
            steps,
            values[:, column],
            color=task_color(column, experiences),
            linewidth=1,
            label=f"experience {column + 1}",
        )
    axes.plot(steps, np.nanmean(values, axis=1), color="black", linewidth=1.6, label="mean")
    for before, point in itertools.pairwise(points):
        if point.experience != before.experience:
            axes.axvline(before.step, color="grey", linestyle=":", linewidth=0.8)
    axes.set_xlabel("training step (dotted: a new experience)")
    axes.set_ylabel(words(quantity))
    axes.set_title(title, fontsize="medium")
    figure.legend(loc="outside right center", fontsize="small")
    return figure
