"""Fills the results matrix while a strategy is evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from cl_ovq.evaluation.metrics import Matrix, to_list
from cl_ovq.metric_names import words
from cl_ovq.training.criteria import OBJECTIVES, count_targets
from cl_ovq.training.divergence import DivergedError

# What is recorded in streams of each kind.
QUANTITIES = {
    "classes": ("accuracy", "loss", "task_masked_accuracy"),
    "tokens": ("accuracy", "loss"),
    "bytes": ("accuracy", "loss", "bits_per_byte"),
    "values": ("squared_error",),
    "vectors": ("squared_error",),
}

LOSSES = {"loss", "squared_error"}


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


@dataclass(frozen=True)
class Row:
    """A row of the results matrices.

    Attributes:
        number: of the row.
        values: on each test experience by quantity; None where it was not measured.
    """

    number: int
    values: dict[str, list[float | None]]


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

    STATE = ("row",)  # of a checkpoint
    HISTORY: ClassVar = {"points": Point, "rows": Row}  # of a checkpoint: what is only ever added to

    def __init__(self, classes_per_experience: Sequence[Sequence[int]], kind: str = "classes") -> None:
        super().__init__()
        self.quantities = QUANTITIES[kind]
        self.classes = [torch.tensor(list(classes)) for classes in classes_per_experience]
        experiences = len(self.classes)
        self.matrices = {name: np.full((experiences + 1, experiences), np.nan) for name in self.quantities}
        self.row: int | None = 0
        self.points: list[Point] = []
        self.rows: list[Row] = []
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
        """Enter the experience into the current row.

        Raises:
            DivergedError: the loss is not finite. Where outputs are NaN, accuracy is that of always answering class 0,
                so the whole row is left empty.
        """
        column = strategy.experience.current_experience
        step = strategy.clock.train_iterations
        found = {name: total / self._targets for name, total in zip(self.quantities, self._sums.tolist(), strict=True)}
        for name in LOSSES & found.keys():
            if not math.isfinite(found[name]):
                self._drop(column, step)
                experience = strategy.clock.train_exp_counter + 1 if self.row is None else self.row
                raise DivergedError(
                    step, experience, f"the {words(name)} on test experience {column + 1} is {found[name]}"
                )
        if self.row is not None:
            for name, value in found.items():
                self.matrices[name][self.row, column] = value
        self._add_to_point(strategy, column, found[self._quantity])
        return [MetricValue(self, f"{name}/task_{column + 1}", value, step) for name, value in found.items()]

    def after_eval(self, strategy: Any) -> None:
        """Keep the row that was filled."""
        if self.row is not None:
            values = {name: to_list(matrix[self.row]) for name, matrix in self.matrices.items()}
            self.rows.append(Row(self.row, values))

    def restored(self) -> None:
        """Fill the matrices from the rows of a checkpoint.

        Raises:
            ValueError: a row is not one of these matrices.
        """
        for row in self.rows:
            if not 0 <= row.number <= len(self.classes) or row.values.keys() != self.matrices.keys():
                raise ValueError(f"row {row.number} is none of these matrices")
            for name, values in row.values.items():
                if len(values) != len(self.classes) or not all(map(_is_finite, values)):
                    raise ValueError(f"row {row.number} has other values than there can be")
                self.matrices[name][row.number] = [math.nan if value is None else value for value in values]
        if self.row is not None and self.row > len(self.classes):
            raise ValueError(f"row {self.row} is none of these matrices")
        for point in self.points:
            if not 0 < len(point.values) <= len(self.classes) or not all(map(_is_finite, point.values)):
                raise ValueError(f"the evaluation in step {point.step} has other values than there can be")

    def _drop(self, column: int, step: int) -> None:
        """Empty the row and the point that are being filled, up to a column."""
        if self.row is not None:
            for matrix in self.matrices.values():
                matrix[self.row] = np.nan
        if column and self.points and self.points[-1].step == step:
            del self.points[-1]

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
        self.rows = []


def _is_finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)


def _count(hits: Tensor) -> Tensor:
    return hits.sum().double().cpu()
