"""Steps of the optimizer that take the gradients of several batches, or compute them with fewer bits."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from cl_ovq.errors import UserError

LOOP = ("training_epoch", "backward", "optimizer_step")  # of a strategy, in whose place `Steps` comes


class Steps(SupervisedPlugin):
    """Trains by the loop of Avalanche's `SGDUpdate`, but makes a step of the optimizer of several batches.

    A step is that of one batch as large as its batches together, up to rounding: each batch's loss, a mean over
    targets, counts by its share of the step's targets. The last step of an epoch has the batches that are left.

    Plugins are called for every batch, but `after_backward`, `before_update` and `after_update` once a step, when all
    of its gradient is there: what penalties, projections and path integrals work on is the whole step's gradient.

    Args:
        dtype: in which the strategy's own pass over a training batch computes what bears it (`torch.autocast`); None
            for that of the weights. Its outputs are fp32 all the same, and so is every other pass.
    """

    STATE: tuple[str, ...] = ()  # of a checkpoint, which is only written between two steps

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype = dtype

    def attach(self, strategy: Any) -> None:
        """Let a strategy train so; it is to have no plugin yet that enters its passes.

        Raises:
            UserError: it has a loop of its own.
        """
        kind = type(strategy)
        for name in LOOP:
            if getattr(kind, name) is not getattr(SupervisedTemplate, name):
                raise UserError(
                    f"training: strategy.name: '{kind.__name__}' defines its own {name}, so neither precision "
                    "nor accumulation can be changed: remove them"
                )
        strategy.training_epoch = partial(self.epoch, strategy)
        if self.dtype is not None:
            strategy.forward = partial(self._forward, strategy, strategy.forward)

    def _forward(self, strategy: Any, forward: Any) -> Tensor:
        """Make a strategy's own pass."""
        if strategy.is_eval:
            outputs: Tensor = forward()
            return outputs
        with torch.autocast(strategy.device.type, dtype=self.dtype):
            outputs = forward()
        return outputs.float()

    def epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Train for an epoch."""
        loader = strategy.dataloader
        for strategy.mbatch in loader:
            if strategy._stop_training:
                break
            strategy._unpack_minibatch()
            strategy._before_training_iteration(**kwargs)
            if loader.begins_step:
                strategy.optimizer.zero_grad()
            strategy.loss = strategy._make_empty_loss()
            strategy._before_forward(**kwargs)
            strategy.mb_output = strategy.forward()
            strategy._after_forward(**kwargs)
            strategy.loss += strategy.criterion()
            strategy._before_backward(**kwargs)
            self.backward(strategy, strategy.loss * loader.share)
            if loader.ends_step:
                self.gathered(strategy)
                strategy._after_backward(**kwargs)
                strategy._before_update(**kwargs)
                self.update(strategy)
                strategy._after_update(**kwargs)
            strategy._after_training_iteration(**kwargs)

    def backward(self, strategy: Any, loss: Tensor) -> None:
        """Add a batch's gradient to its step's."""
        loss.backward(retain_graph=strategy.retain_graph)

    def gathered(self, strategy: Any) -> None:
        """Make the gradient of a step ready for plugins."""

    def update(self, strategy: Any) -> None:
        """Make the step."""
        strategy.optimizer_step()


class ScaledSteps(Steps):
    """Steps in fp16, whose losses are scaled so that small gradients do not vanish (Micikevicius et al. 2018).

    Plugins see gradients of their true size. Of a step whose gradient has overflowed they see none, it changes no
    weight, and the scale is halved; after 2000 steps without one it is doubled (`torch.amp.GradScaler`).

    Args:
        device: where gradients are.
    """

    STATE = ("scale", "whole")

    def __init__(self, device: torch.device) -> None:
        super().__init__(torch.float16)
        self.scaler = torch.amp.GradScaler(device.type)

    @property
    def scale(self) -> float:
        """Factor of the loss."""
        return float(self.scaler.state_dict()["scale"])

    @scale.setter
    def scale(self, value: float) -> None:
        if not 0 < value < math.inf:
            raise ValueError(f"the loss scale is {value}")
        self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": value})

    @property
    def whole(self) -> int:
        """Steps without overflow since the scale has changed."""
        return int(self.scaler.state_dict()["_growth_tracker"])

    @whole.setter
    def whole(self, value: int) -> None:
        self.scaler.load_state_dict(self.scaler.state_dict() | {"_growth_tracker": value})

    def backward(self, strategy: Any, loss: Tensor) -> None:
        """Add a batch's gradient to its step's."""
        super().backward(strategy, self.scaler.scale(loss))

    def gathered(self, strategy: Any) -> None:
        """Give a step's gradient its size."""
        self.scaler.unscale_(strategy.optimizer)
        weights = (weight for group in strategy.optimizer.param_groups for weight in group["params"])
        if not all(bool(weight.grad.isfinite().all()) for weight in weights if weight.grad is not None):
            strategy.optimizer.zero_grad()  # the scaler remembers, and makes no step

    def update(self, strategy: Any) -> None:
        """Make the step, unless its gradient has overflowed."""
        self.scaler.step(strategy.optimizer)
        self.scaler.update()


def is_narrow(strategy: Any) -> bool:
    """Return whether a strategy's own passes compute with fewer bits than others."""
    return any(isinstance(plugin, Steps) and plugin.dtype is not None for plugin in strategy.plugins)
