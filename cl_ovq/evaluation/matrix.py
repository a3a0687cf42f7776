"""Fills the results matrix while a strategy is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from cl_ovq.evaluation.metrics import Matrix

QUANTITIES = ("accuracy", "task_masked_accuracy", "loss")


class MatrixRecorder(PluginMetric[dict[str, Matrix]]):
    """Records accuracy and loss of every test experience; `row` says which row an evaluation fills.

    Avalanche's own stream metrics weight experiences by their samples and count those not yet seen; its forgetting is
    zero on online streams. So the matrix is kept here, and every metric is computed from it.

    Quantities:
        accuracy: share of samples whose largest logit is the target.
        task_masked_accuracy: the same, among the classes of the sample's experience only.
        loss: mean cross-entropy in nats.

    Args:
        classes_per_experience: the labels of each experience.
    """

    STATE = ("matrices", "row")  # of a checkpoint

    def __init__(self, classes_per_experience: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.classes = [torch.tensor(list(classes)) for classes in classes_per_experience]
        experiences = len(self.classes)
        self.matrices = {name: np.full((experiences + 1, experiences), np.nan) for name in QUANTITIES}
        self.row = 0
        self._sums = torch.zeros(len(QUANTITIES), dtype=torch.float64)
        self._samples = 0

    def before_eval_exp(self, strategy: Any) -> None:
        """Start the sums of an experience."""
        self._sums.zero_()
        self._samples = 0

    def after_eval_iteration(self, strategy: Any) -> None:
        """Add a batch to the sums."""
        logits, targets = strategy.mb_output, strategy.mb_y
        classes = self.classes[strategy.experience.current_experience].to(logits.device)
        masked = classes[logits[:, classes].argmax(1)]
        self._sums += torch.stack(
            (
                _count(logits.argmax(1) == targets),
                _count(masked == targets),
                strategy.loss.double().mean().cpu() * len(targets),
            )
        )
        self._samples += len(targets)

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Enter the experience into the current row."""
        column = strategy.experience.current_experience
        step = strategy.clock.train_iterations
        values = []
        for name, total in zip(QUANTITIES, self._sums.tolist(), strict=True):
            self.matrices[name][self.row, column] = total / self._samples
            values.append(MetricValue(self, f"{name}/task_{column + 1}", total / self._samples, step))
        return values

    def result(self) -> dict[str, Matrix]:
        """Return the matrices filled so far, `[T + 1, T]` each, NaN where nothing was measured."""
        return self.matrices

    def reset(self) -> None:
        """Forget all rows."""
        for matrix in self.matrices.values():
            matrix.fill(np.nan)
        self.row = 0


def _count(hits: Tensor) -> Tensor:
    return hits.sum().double().cpu()
