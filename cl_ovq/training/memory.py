"""Writes the memory head as training goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from cl_ovq.models.gradient_free import GradientFreeHead
from cl_ovq.models.heads import RememberingHead, unwrap
from cl_ovq.training.augmentation import is_augmented, plain_inputs
from cl_ovq.training.passes import around_own_pass, evaluating, logits_of
from cl_ovq.training.steps import is_narrow
from streams import Stream, rows_of


class MemoryWrites(SupervisedPlugin):
    """Writes each sample into the memory head once, when it is seen in the last epoch of an experience.

    Then the features are the freshest that a trained encoder gives. They are those of evaluation mode, which a query
    will have: an encoder that is still in training mode, saw an augmented batch or computed with fewer bits is given
    the plain batch too. A sample that comes again, replayed or because a strategy trains on all data so far, is not
    written again.

    Args:
        stream: the stream, whose validation samples calibrate the memory.
        calibrate: whether to choose the read-out's settings after every experience, on validation data so far.
    """

    STATE = ("written",)  # of a checkpoint

    def __init__(self, stream: Stream, *, calibrate: bool) -> None:
        super().__init__()
        self.stream = stream
        self.calibrate = calibrate
        self.written = torch.zeros(len(stream.samples), dtype=torch.bool)
        self._watching = False
        self._features: dict[RememberingHead, Tensor | None] = {}

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the features of the strategy's own passes from now on."""
        if not self._watching:
            around_own_pass(strategy, lambda: self._observing(strategy))
            self._watching = True

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """A memory that was emptied, by a strategy that starts from scratch, has seen nothing."""
        if not any(head.memory.tokens for head in _heads(strategy.model)):
            self.written.zero_()

    @contextmanager
    def _observing(self, strategy: Any) -> Iterator[None]:
        """Keep the features of a pass, in evaluation mode."""
        yield
        learning = unwrap(strategy.model).training  # the encoder is not frozen
        if _last_epoch(strategy) and (learning or is_augmented(strategy) or is_narrow(strategy)):
            with torch.no_grad(), evaluating(strategy.model):
                logits_of(strategy.model, plain_inputs(strategy, self.stream.samples), strategy.mb_task_id)
        self._features = {head: head.observed for head in _heads(strategy.model)}

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Write the batch's samples that were not written before, if this is the experience's last epoch."""
        features, self._features = self._features, {}
        if not _last_epoch(strategy):
            return
        rows = strategy.dataloader.rows
        new = ~self.written[rows] & first_of_each(rows)
        self.written[rows] = True
        for head, observed in features.items():
            if observed is not None:
                chosen = new.to(observed.device)
                head.memory.observe(observed[chosen], strategy.mb_y[chosen])

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let heads end their experience, and calibrate a memory."""
        for head in _heads(strategy.model):
            if isinstance(head.memory, GradientFreeHead):
                head.memory.end_experience()
        if not self.calibrate:
            return
        learned = strategy.experience.current_experience + 1
        experiences = list(self.stream.benchmark.streams["validation"])[:learned]
        rows = torch.cat([rows_of(experience.dataset) for experience in experiences])
        x = self.stream.samples.gather(rows).to(strategy.device)
        y = self.stream.samples.targets[rows].to(strategy.device)
        with torch.no_grad(), evaluating(strategy.model):
            features = unwrap(strategy.model).features(x)
        for head in _heads(strategy.model):
            head.memory.calibrate(features, y)


def first_of_each(rows: Tensor) -> Tensor:
    """Return where a row `[B]` comes for the first time: a batch may hold a sample twice, as new and replayed."""
    ordered, index = rows.sort(stable=True)
    first = torch.ones_like(rows, dtype=torch.bool)
    first[index[1:]] = ordered[1:] != ordered[:-1]
    return first


def _last_epoch(strategy: Any) -> bool:
    return bool(strategy.clock.train_exp_epochs + 1 >= strategy.train_epochs)


def _heads(model: torch.nn.Module) -> list[RememberingHead]:
    return [module for module in model.modules() if isinstance(module, RememberingHead)]
