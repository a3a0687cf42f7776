"""Keeps persistent dictionaries in step with training: when they are emptied, and when they are written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from avalanche.training.plugins import SupervisedPlugin

from cl_ovq.mixers import dictionaries


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

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Record the strategy's passes from now on."""
        if not getattr(strategy.forward, "recorded", False):
            strategy.forward = _recorded(strategy)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Empty the dictionaries of the last experience where they are its own, and begin a page of the diary."""
        for dictionary in dictionaries(strategy.model).values():
            if self.scope == "task":
                dictionary.reset()
            dictionary.begin_task(strategy.experience.current_experience)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Write what was recorded, now that the gradients that depend on the old entries are taken."""
        for dictionary in dictionaries(strategy.model).values():
            dictionary.write()


def _recorded(strategy: Any) -> Callable[[], Any]:
    """Return a strategy's own pass, recorded in training.

    The hooks around the pass would not do: plugins that come earlier in the list run passes of their own before it has
    stopped recording.
    """
    forward = strategy.forward

    def recorded() -> Any:
        if strategy.is_eval:
            return forward()
        with ExitStack() as recording:
            for dictionary in dictionaries(strategy.model).values():
                recording.enter_context(dictionary.recording())
            return forward()

    recorded.recorded = True  # type: ignore[attr-defined]
    return recorded
