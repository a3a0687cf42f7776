"""Ends training when it has diverged: what comes after a loss that is not a number is not learning."""

from __future__ import annotations

import math
from typing import Any

from avalanche.training.plugins import SupervisedPlugin

from cl_ovq.errors import UserError
from cl_ovq.training.passes import trained


class DivergedError(UserError):
    """Training has diverged. A run catches this and keeps what it has found so far.

    Attributes:
        step: training steps begun, from 1; 0 before training.
        experience: that was being learned, or was learned last, from 1; 0 before training.
        reason: what is not a finite number.
    """

    def __init__(self, step: int, experience: int, reason: str) -> None:
        super().__init__(f"training diverged in step {step} (experience {experience}): {reason}")
        self.step = step
        self.experience = experience
        self.reason = reason

    def to_dict(self) -> dict[str, Any]:
        """Return it as a result has it."""
        return {"experience": self.experience, "step": self.step, "reason": self.reason}


class DivergenceGuard(SupervisedPlugin):
    """Raises `DivergedError` before the first step whose loss is not finite changes anything.

    It must come after the plugins that add to the loss. Weights are looked at after every epoch, so that a last step
    that breaks them does not go unnoticed either.
    """

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Look at the loss."""
        loss = float(strategy.loss.detach())
        if not math.isfinite(loss):
            raise diverged(strategy, strategy.clock.train_iterations + 1, f"the loss is {loss}")

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Look at the weights."""
        for name, weight in trained(strategy.model).items():
            if not weight.isfinite().all():
                raise diverged(strategy, strategy.clock.train_iterations, f"weights of {name} are not finite")


def diverged(strategy: Any, step: int, reason: str) -> DivergedError:
    """Return the error for a strategy that is learning an experience."""
    return DivergedError(step, strategy.clock.train_exp_counter + 1, reason)
