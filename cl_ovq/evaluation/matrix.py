"""Fills the results matrix while a strategy is evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from cl_ovq.evaluation.metrics import Matrix
from cl_ovq.learning.criteria import OBJECTIVES, count_targets

# What is recorded in streams of each kind.
QUANTITIES = {
    "classes": ("accuracy", "loss", "task_masked_accuracy"),
    "tokens": ("accuracy", "loss"),
    "bytes": ("accuracy", "loss", "bits_per_byte"),
    "values": ("squared_error",),
}


@dataclass
class Point:
    """One evaluation after training began.

    Attributes:
        step: training steps done.
        experience: that is being learned, or was learned last, from 1 on.
        values: what the results matrix holds, with the sign that it has, on each experience up to that one.
    """

    step: int
    experience: int
    values: list[float]


class MatrixRecorder(PluginMetric[dict[str, Matrix]]):
    """Records the quantities of every test experience; `row` says which row an evaluation fills, None for none.

    Every evaluation after the one before training is kept as a `Point` too.

    Avalanche's own stream metrics weight experiences by their samples and count those not yet seen; its forgetting is
    zero on online streams. So the matrix is kept here, and every metric is computed from it.

    Quantities:
        accuracy: share of targets that have the largest logit; every target of a sequence counts as one.
        loss: mean cross-entropy in nats.
        task_masked_accuracy: accuracy among the classes of the sample's experience only.
        bits_per_byte: the loss in bits.
        squared_error: mean over targets.

    Args:
        classes_per_experience: the labels of each experience.
        kind: of the stream, see `streams.stream.KINDS`.
    """

    STATE = ("matrices", "row", "points")  # of a checkpoint

    def __init__(self, classes_per_experience: Sequence[Sequence[int]], kind: str = "classes") -> None:
        super().__init__()
        self.quantities = QUANTITIES[kind]
        self.classes = [torch.tensor(list(classes)) for classes in classes_per_experience]
        experiences = len(self.classes)
        self.matrices = {name: np.full((experiences + 1, experiences), np.nan) for name in self.quantities}
        self.row: int | None = 0
        self.points: list[Point] = []
        self._quantity = OBJECTIVES[kind].quantity
        self._sums = torch.zeros(len(self.quantities), dtype=torch.float64)
        self._targets = 0

    def before_eval_exp(self, strategy: Any) -> None:
        """Start the sums of an experience."""
        self._sums.zero_()
        self._targets = 0

    def after_eval_iteration(self, strategy: Any) -> None:
        """Add a batch to the sums."""
        outputs, targets = strategy.mb_output, strategy.mb_y
        count = count_targets(targets)
        loss = strategy.loss.double().mean().cpu() * count
        sums = {"loss": loss, "squared_error": loss, "bits_per_byte": loss / math.log(2)}
        if "accuracy" in self.quantities:
            sums["accuracy"] = _count(outputs.argmax(-1) == targets)
        if "task_masked_accuracy" in self.quantities:
            classes = self.classes[strategy.experience.current_experience].to(outputs.device)
            sums["task_masked_accuracy"] = _count(classes[outputs[:, classes].argmax(1)] == targets)
        self._sums += torch.stack([sums[name] for name in self.quantities])
        self._targets += count

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Enter the experience into the current row."""
        column = strategy.experience.current_experience
        step = strategy.clock.train_iterations
        found = {name: total / self._targets for name, total in zip(self.quantities, self._sums.tolist(), strict=True)}
        if self.row is not None:
            for name, value in found.items():
                self.matrices[name][self.row, column] = value
        self._add_to_point(strategy, column, found[self._quantity])
        return [MetricValue(self, f"{name}/task_{column + 1}", value, step) for name, value in found.items()]

    def _add_to_point(self, strategy: Any, column: int, value: float) -> None:
        """Keep a value on an experience that training has come to; the end of an experience replaces a point there."""
        step, experience = strategy.clock.train_iterations, strategy.clock.train_exp_counter + 1
        if self.row is not None:
            experience = self.row
        if column >= experience:
            return
        if column == 0:
            if self.points and self.points[-1].step == step:
                del self.points[-1]
            self.points.append(Point(step, experience, []))
        self.points[-1].values.append(value)

    def result(self) -> dict[str, Matrix]:
        """Return the matrices filled so far, `[T + 1, T]` each, NaN where nothing was measured."""
        return self.matrices

    def reset(self) -> None:
        """Forget all rows."""
        for matrix in self.matrices.values():
            matrix.fill(np.nan)
        self.row = 0
        self.points = []


def _count(hits: Tensor) -> Tensor:
    return hits.sum().double().cpu()
