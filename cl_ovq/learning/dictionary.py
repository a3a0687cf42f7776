"""Keeps persistent dictionaries in step with training: when they are emptied, and when they are written."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from avalanche.training.plugins import SupervisedPlugin

from cl_ovq.mixers import dictionaries


class DictionaryScope(SupervisedPlugin):
    """Writes every persistent dictionary once per training step, and empties them when their scope ends.

    Only the strategy's own forward pass over the batch is recorded. Passes that a method adds for its own ends (a
    teacher, a gradient constraint, a Fisher estimate) are not written, nor is anything seen in evaluation.

    Args:
        scope: `task` empties the dictionaries when an experience begins; `stream` never does.
    """

    def __init__(self, scope: str) -> None:
        super().__init__()
        self.scope = scope
        self._recording = ExitStack()

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Empty the dictionaries of the last experience where they are its own, and begin a page of the diary."""
        for dictionary in dictionaries(strategy.model).values():
            if self.scope == "task":
                dictionary.reset()
            dictionary.begin_task(strategy.experience.current_experience)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Record the pass that begins."""
        for dictionary in dictionaries(strategy.model).values():
            self._recording.enter_context(dictionary.recording())

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Stop recording."""
        self._recording.close()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Write what was recorded, now that the gradients that depend on the old entries are taken."""
        for dictionary in dictionaries(strategy.model).values():
            dictionary.write()
