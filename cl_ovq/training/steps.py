"""Steps of the optimizer that take the gradients of several batches."""

from __future__ import annotations

from functools import partial
from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate

from cl_ovq.errors import UserError

LOOP = ("training_epoch", "backward", "optimizer_step")  # of a strategy, in whose place `Steps` comes


class Steps(SupervisedPlugin):
    """Trains by the loop of Avalanche's `SGDUpdate`, but makes a step of the optimizer of several batches.

    A step is that of one batch as large as its batches together, up to rounding: each batch's loss, a mean over
    targets, counts by its share of the step's targets. The last step of an epoch has the batches that are left.

    Plugins are called for every batch, but `after_backward`, `before_update` and `after_update` once a step, when all
    of its gradient is there: what penalties, projections and path integrals work on is the whole step's gradient.
    """

    STATE = ()  # of a checkpoint, which is only written between two steps

    def attach(self, strategy: Any) -> None:
        """Let a strategy train so.

        Raises:
            UserError: it has a loop of its own.
        """
        kind = type(strategy)
        for name in LOOP:
            if getattr(kind, name) is not getattr(SupervisedTemplate, name):
                raise UserError(
                    f"training.accumulation: '{kind.__name__}' has a {name} of its own, which takes one batch a step: "
                    "leave it out"
                )
        strategy.training_epoch = partial(self.epoch, strategy)

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
            (strategy.loss * loader.share).backward(retain_graph=strategy.retain_graph)
            if loader.ends_step:
                strategy._after_backward(**kwargs)
                strategy._before_update(**kwargs)
                strategy.optimizer_step()
                strategy._after_update(**kwargs)
            strategy._after_training_iteration(**kwargs)
