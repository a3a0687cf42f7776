"""Adds to the training loss what mixers ask for beside it, such as the commitment of keys to their codes (vq)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from cl_ovq.mixers import auxiliary_losses


class AuxiliaryLoss(SupervisedPlugin):
    """Collects the auxiliary losses of the strategy's own forward pass and adds them before the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self._collecting = ExitStack()
        self._losses: list[Tensor] = []

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Collect from the pass that begins."""
        self._losses = self._collecting.enter_context(auxiliary_losses(strategy.model))

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Stop collecting."""
        self._collecting.close()

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add what was collected."""
        for loss in self._losses:
            strategy.loss = strategy.loss + loss
        self._losses = []
