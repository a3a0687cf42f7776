"""Writes checkpoints as training goes, and goes on from one."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avalanche.training.plugins import SupervisedPlugin

from cl_ovq.errors import UserError
from cl_ovq.runs.checkpoints.files import NAME, write_checkpoint
from cl_ovq.runs.checkpoints.history import History
from cl_ovq.runs.checkpoints.resume import Begun
from cl_ovq.runs.checkpoints.schema import VERSION
from cl_ovq.runs.checkpoints.state import PLAN, RunState
from cl_ovq.training.passes import step_ends


class Checkpoints(SupervisedPlugin):
    """The checkpoint of a run: a file that is replaced after every experience, and every so many steps if asked.

    What a run only ever adds to is in a file beside it that is appended to first, see `checkpoints.history`: a process
    that is killed between the two leaves a history that is longer than its checkpoint says, and loses nothing. Where
    neither can be written, training continues, and the previous checkpoint is kept.

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
        tell: is given a line when a checkpoint cannot be written.
        settle: writes what the run has logged so far, and returns whether it could. A checkpoint must not be later than
            the run's log: what is missing there would never be logged.

    Attributes:
        done: experiences that are over.
    """

    def __init__(
        self,
        state: RunState,
        folder: Path | None,
        every_steps: int | None,
        about: dict[str, Any],
        started: float,
        tell: Callable[[str], None],
        settle: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__()
        self.state = state
        self.folder = folder
        self.every_steps = every_steps
        self.about = about
        self.started = started
        self.tell = tell
        self.settle = settle
        self._history = None if folder is None else History(folder)
        self._told = self._due = False
        self._since = 0.0
        self.done = 0
        self._pending: dict[str, Any] | None = None
        self._series: dict[str, list[Any]] = {}
        self._epochs = 0

    def save(self, *, within: bool) -> None:
        """Write the checkpoint, or warn once that none can be written.

        Args:
            within: whether it is taken within an experience.
        """
        self.about["wall_seconds"] = time.perf_counter() - self.started
        if self._history is None or self.folder is None:
            return
        run = {"version": VERSION, "about": self.about, "done": self.done, "within": within}
        try:
            if not self.settle():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            run["history"] = self._history.append(self.state.series(within=within))
            write_checkpoint(self.folder / NAME, run | {"state": self.state.take(within=within)})
        except OSError as error:
            if not self._told:
                kept = "with the previous checkpoint" if (self.folder / NAME).exists() else "without a checkpoint"
                self.tell(f"{self.folder / NAME} cannot be written: {error.strerror}: training continues {kept}")
            self._told = True
        else:
            self._told = False

    def resume(self, begun: Begun, parts: int) -> None:
        """Go on from a checkpoint that was read: the next call of `strategy.train` continues it.

        Args:
            begun: what was read.
            parts: how often `strategy.train` is called in the whole run.

        Raises:
            UserError: it does not fit this run.
        """
        try:
            self._resume(begun.run, begun.history, parts)
        except Exception as error:  # of whatever kind: the file is right in itself, and says what is wrong for this run
            reason = str(error) or type(error).__name__
            raise UserError(f"{begun.history.path.with_name(NAME)} does not fit this run: {reason}") from error

    def _resume(self, run: dict[str, Any], history: History, parts: int) -> None:
        strategy, state, clock = self.state.strategy, run["state"], run["state"]["clock"]
        self.done = run["done"]
        if self.done > parts or (run["within"] and self.done == parts):
            raise ValueError(f"{self.done} of {parts} experiences are done")
        if clock["train_exp_counter"] != self.done or (
            run["within"] and clock["train_exp_epochs"] >= strategy.train_epochs
        ):
            raise ValueError("its clock shows a different position in training")
        strategy.model.to(strategy.device)
        strategy.make_optimizer(reset_optimizer_state=True)  # as Avalanche does before the first experience
        self.state.check(state)
        series = self.state.read_series(history.rows)
        if run["within"] and (len(series[PLAN]) != 1 or state["plan"] > len(series[PLAN][0])):
            raise ValueError("its batch order lacks the remaining batches")
        self.state.begin(self.done)
        self.state.put(state)
        self.state.put_series(series)
        history.hold(series)
        if self._history is not None:
            self._history = history
        if run["within"]:
            self._pending, self._series = state, series

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
            strategy.dataloader.resume(self._series[PLAN][0], pending["plan"])
            self.state.put(pending)
            self.state.put_series(self._series)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Write, if it is time to; where gradients are accumulated, once their step is made."""
        if self.every_steps is not None and strategy.clock.train_iterations % self.every_steps == 0:
            self._due = True
        if self._due and step_ends(strategy):
            self._due = False
            self._count()
            self.save(within=True)

    def _count(self) -> None:
        now = time.perf_counter()
        self.about["train_seconds"] += now - self._since
        self._since = now
