"""Sets the learning rate as training goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avalanche.training.plugins import SupervisedPlugin


class LearningRate(SupervisedPlugin):
    """Sets the learning rate of every step of the optimizer, along a course that begins anew in each experience.

    Steps are those of the optimizer: with gradient accumulation, one for several batches. The course is laid over all
    epochs of the experience, also where a strategy ends it early.

    Args:
        course: gives the rate as a share of the optimizer's own, from the steps before and those of the experience.
        optimizer: as built, with the rates that shares are of.
    """

    STATE = ("step", "steps")  # of a checkpoint

    def __init__(self, course: Callable[[int, int], float], optimizer: Any) -> None:
        super().__init__()
        self.course = course
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.step = 0
        self.steps = 1

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Begin anew."""
        self.step, self.steps = 0, strategy.train_epochs * strategy.dataloader.steps
        self._set(strategy)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Set the rate of the next step; after the last one it stays."""
        self.step += 1
        if self.step < self.steps:
            self._set(strategy)

    def _set(self, strategy: Any) -> None:
        share = self.course(self.step, self.steps)
        for group, rate in zip(strategy.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
