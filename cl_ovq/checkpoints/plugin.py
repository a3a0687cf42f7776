"""Writes checkpoints as training goes, and goes on from one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from avalanche.training.plugins import SupervisedPlugin

from cl_ovq.checkpoints.files import NAME, write_checkpoint
from cl_ovq.checkpoints.state import RunState


class Checkpoints(SupervisedPlugin):
    """The checkpoint of a run: one file, replaced after every experience, and every so many steps if asked.

    It must be the very last plugin, after Avalanche's clock. A run goes on in the middle of an experience by letting
    Avalanche set the experience up as always, and then overwriting everything, at the beginning of the epoch, with the
    state that was saved: models, optimizers, buffers, random numbers, and the batches that were still to come.

    Args:
        state: takes and puts back the run's state.
        folder: where the file is written; None to write nothing.
        every_steps: training steps between two checkpoints within an experience; None for none.
        about: what else to keep: the configuration, and the seconds so far (`train_seconds`, `wall_seconds`), which are
            counted here.
        started: when the run began, by `time.perf_counter`.

    Attributes:
        done: experiences that are over.
    """

    def __init__(
        self, state: RunState, folder: Path | None, every_steps: int | None, about: dict[str, Any], started: float
    ) -> None:
        super().__init__()
        self.state = state
        self.folder = folder
        self.every_steps = every_steps
        self.about = about
        self.started = started
        self._since = 0.0
        self.done = 0
        self._pending: dict[str, Any] | None = None
        self._epochs = 0

    def save(self, *, within: bool) -> None:
        """Write the checkpoint.

        Args:
            within: whether it is taken within an experience.
        """
        self.about["wall_seconds"] = time.perf_counter() - self.started
        if self.folder is not None:
            run = {"about": self.about, "done": self.done, "within": within, "state": self.state.take()}
            write_checkpoint(self.folder / NAME, run)

    def resume(self, run: dict[str, Any]) -> None:
        """Go on from a checkpoint that was read: the next call of `strategy.train` continues it."""
        strategy = self.state.strategy
        self.done = run["done"]
        strategy.model.to(strategy.device)
        strategy.make_optimizer(reset_optimizer_state=True)  # as Avalanche does before the first experience
        self.state.begin(self.done)
        self.state.put(run["state"])
        self._pending = run["state"] if run["within"] else None

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Count the seconds of training."""
        self._since = time.perf_counter()

    def after_training(self, strategy: Any, **kwargs: Any) -> None:
        """Count them."""
        self._count()

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Ask for the epochs that are left."""
        if self._pending is not None:
            self._epochs = strategy.train_epochs
            strategy.train_epochs -= self._pending["clock"]["train_exp_epochs"]

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Overwrite what setting up has done."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            strategy.train_epochs = self._epochs
            strategy.dataloader.resume(pending["plan"])
            self.state.put(pending)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Write, if it is time to."""
        if self.every_steps is not None and strategy.clock.train_iterations % self.every_steps == 0:
            self._count()
            self.save(within=True)

    def _count(self) -> None:
        now = time.perf_counter()
        self.about["train_seconds"] += now - self._since
        self._since = now
