"""Keeps persistent dictionaries in step with training: when they are emptied, and when they are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from cl_ovq.mixers import dictionaries
from cl_ovq.training.passes import around_own_pass, step_ends


class DictionaryScope(SupervisedPlugin):
    """Writes every persistent dictionary once per training step, and empties them when their scope ends.

    Only the strategy's own forward pass over the batch is recorded. Passes that a method or another plugin adds for its
    own ends, at whatever hook (a teacher, a gradient constraint, a Fisher estimate), are not written, nor is anything
    seen in evaluation.

    Args:
        scope: `task` empties the dictionaries when an experience begins; `stream` never does.
    """

    def __init__(self, scope: str) -> None:
        super().__init__()
        self.scope = scope
        self._recording = False

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Record the strategy's own passes from now on."""
        if not self._recording:
            around_own_pass(strategy, lambda: _recording(strategy.model))
            self._recording = True

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Empty the dictionaries of the last experience where they are its own, and begin a page of the write log."""
        for dictionary in dictionaries(strategy.model).values():
            if self.scope == "task":
                dictionary.reset()
            dictionary.begin_task(strategy.experience.current_experience)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Write what was recorded, now that the gradients that depend on the old entries are taken."""
        if not step_ends(strategy):
            return
        for dictionary in dictionaries(strategy.model).values():
            dictionary.write()


@contextmanager
def _recording(model: nn.Module) -> Iterator[None]:
    with ExitStack() as stack:
        for dictionary in dictionaries(model).values():
            stack.enter_context(dictionary.recording(evaluation=True))  # a frozen encoder is in that mode
        yield
