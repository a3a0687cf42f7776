"""A progress bar per experience."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ExperienceProgress(SupervisedPlugin):
    """Shows the training steps of each experience, with the current loss; on a pipe, one line when it is done.

    Args:
        console: where to draw; standard error, so that standard output stays free for results.
        experiences: number of experiences to come.
    """

    STATE = ("_seen",)  # of a checkpoint

    def __init__(self, console: Console, experiences: int) -> None:
        super().__init__()
        self.console = console
        self.experiences = experiences
        self._seen = 0
        self._loss = float("nan")
        self._task: TaskID | None = None
        self._bar: Progress | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Draw a bar as long as the experience's training steps."""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            console=self.console,
        )
        number, steps = self._seen + 1, strategy.train_epochs * len(strategy.dataloader)
        self._task = self._bar.add_task(f"experience {number}/{self.experiences}", total=steps, loss=self._loss)
        self._bar.start()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        if self._bar is not None and self._task is not None:
            self._loss = float(strategy.loss.detach())
            done = strategy.clock.train_exp_iterations + 1  # counted from a checkpoint within the experience on
            self._bar.update(self._task, completed=done, loss=self._loss)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Leave the finished bar on the screen."""
        self._seen += 1
        self.close()

    def close(self) -> None:
        """Stop drawing, also when training was cut short."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
