"""What happens beside a run as it goes: its checkpoint, MLflow, the progress bar, and whatever a caller adds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cl_ovq.errors import UserError
from cl_ovq.runs.run_logging import log_data, log_model, log_result
from cl_ovq.runs.summary import warn
from cl_ovq.training import quantity_of

if TYPE_CHECKING:
    from cl_ovq.runs.checkpoints.plugin import Checkpoints
    from cl_ovq.runs.result import Result
    from cl_ovq.runs.run import Run
    from cl_ovq.training.progress import ExperienceProgress


class Callback:
    """Is called as a run goes. Each method does nothing unless a subclass says what.

    An exception ends the run as if it had been interrupted: it goes on from its checkpoint with `resume`.
    """

    def run_begin(self, run: Run) -> None:
        """Stream, model and strategy are built, and nothing is trained yet, or again."""

    def experience_end(self, run: Run, row: int) -> None:
        """An experience is learned, and evaluated unless `evaluation.rows` leaves it out.

        Args:
            run: with the metrics so far as `run.metrics`, which is empty where it was not evaluated.
            row: of the results matrix: experiences learned.
        """

    def training_end(self, run: Run) -> None:
        """Training is over, by whatever way: all was learned, it diverged, or an exception is on its way."""

    def result_written(self, run: Run, result: Result) -> None:
        """The result is in the run's directory, and its figures are still to be drawn."""

    def run_end(self, run: Run, result: Result) -> None:
        """All files of the run are written."""


class Callbacks(Callback):
    """Calls several callbacks in turn."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self.callbacks = list(callbacks)

    def run_begin(self, run: Run) -> None:  # noqa: D102
        for callback in self.callbacks:
            callback.run_begin(run)

    def experience_end(self, run: Run, row: int) -> None:  # noqa: D102
        for callback in self.callbacks:
            callback.experience_end(run, row)

    def training_end(self, run: Run) -> None:  # noqa: D102
        for callback in self.callbacks:
            callback.training_end(run)

    def result_written(self, run: Run, result: Result) -> None:  # noqa: D102
        for callback in self.callbacks:
            callback.result_written(run, result)

    def run_end(self, run: Run, result: Result) -> None:  # noqa: D102
        for callback in self.callbacks:
            callback.run_end(run, result)


class Tracking(Callback):
    """Logs the run to MLflow; what is logged step by step, Avalanche's evaluator hands to the same tracker."""

    def run_begin(self, run: Run) -> None:
        """Name the data; what a run that was finished before has found, tell an MLflow run that is new."""
        log_data(run.stream, run.config.evaluation.split, run.tracker)
        if not run.tracker.resumed:
            # MLflow's comparison page plots what a run logged first; undefined until an experience is learned.
            run.tracker.log({quantity_of(run.config.stream.name): math.nan}, step=0)
        if run.earlier is not None and not run.tracker.resumed:
            found = {name: value for name, value in run.earlier.metrics.items() if value is not None}
            run.tracker.log(found, step=len(run.earlier.matrix) - 1)

    def experience_end(self, run: Run, row: int) -> None:
        """Log the metrics of the experiences so far."""
        if run.metrics:
            run.tracker.log(run.metrics, step=row)

    def result_written(self, run: Run, result: Result) -> None:
        """Register the model, which is sent while figures are drawn."""
        if not run.config.tracking.log_model or result.diverged is not None:
            return
        try:
            log_model(run.config, run.stream, run.model, run.directory, run.tracker)
        except UserError as error:  # its encoder's weights are gone, whose features were kept
            warn(run.console, "model", f"not saved: {error}")
        except (OSError, RuntimeError) as error:  # the latter is what PyTorch makes of a full disk
            warn(run.console, "model", f"{run.directory / 'model.pt'} cannot be written: {error}")

    def run_end(self, run: Run, result: Result) -> None:
        """Log what is known at the end."""
        log_result(result, run.directory, run.tracker)


class Checkpointing(Callback):
    """Writes a checkpoint after every experience; those within one the plugin writes by itself."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def experience_end(self, run: Run, row: int) -> None:
        """Write it."""
        self.checkpoints.done += 1
        self.checkpoints.save(within=False)


class Progress(Callback):
    """Takes the progress bar off the screen when training ends in the middle of an experience."""

    def __init__(self, bar: ExperienceProgress) -> None:
        self.bar = bar

    def training_end(self, run: Run) -> None:
        """Take it off."""
        self.bar.close()
