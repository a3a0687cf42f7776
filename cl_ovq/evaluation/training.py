"""The training loss, step by step."""

from __future__ import annotations

from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue


class TrainingLoss(PluginMetric[float]):
    """The loss of every training step, in nats, as the strategy minimises it (penalties included)."""

    def __init__(self) -> None:
        super().__init__()
        self._last = float("nan")

    def after_training_iteration(self, strategy: Any) -> list[MetricValue]:
        """Emit the step's loss."""
        self._last = float(strategy.loss.detach())
        return [MetricValue(self, "loss/train", self._last, strategy.clock.train_iterations + 1)]

    def result(self) -> float:
        """Return the last step's loss."""
        return self._last

    def reset(self) -> None:
        """Forget it."""
        self._last = float("nan")
