"""Follows a sweep on the driver: keeps the trials' records, and shows one live table."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from rich.console import Console
from rich.live import Live

from cl_ovq.report.table import Column, Table
from cl_ovq.sweeps.files import Sweep
from cl_ovq.sweeps.records import BROKEN, DONE, FAILED, RUNNING, STOPPED, Record, best


class Follower(Callback):
    """Ray Tune's callback of a sweep.

    Args:
        sweep: the sweep.
        directory: of the sweep.
        records: of earlier starts.
        console: where the table is drawn; on a pipe, one line for each trial that ends.
        log: takes metrics of the sweep by name, and how many trials have ended.
        lost: says whether Ray is gone: trials that end with it have not failed.
    """

    def __init__(
        self,
        sweep: Sweep,
        directory: Path,
        records: dict[int, Record],
        console: Console,
        log: Callable[[dict[str, float], int], None],
        lost: Callable[[], bool],
    ) -> None:
        self.sweep, self.directory, self.records = sweep, directory, records
        self.console, self.log, self.lost = console, log, lost
        self.total = sweep.trials
        self.reached = False  # whether the target was
        self._began = time.monotonic()
        self._before = sum(record.ended for record in records.values())
        self._at_work: set[int] = set()
        self._spent: dict[str, float] = {}  # seconds that trials have run, by Ray's id
        self._over: set[str] = set()  # trials whose time is over
        self._stepped = time.monotonic()
        self._live = Live(get_renderable=self.table, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Follower:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray keeps a copy that nobody reads

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """End the trials that have run for too long. Their processes are killed: what hangs hears nothing else."""
        limit, now = self.sweep.budget.trial_minutes, time.monotonic()
        passed, self._stepped = now - self._stepped, now
        if limit is None:
            return
        for trial in trials:
            actor = trial.temporary_state.ray_actor
            if trial.status != Trial.RUNNING or actor is None or trial.trial_id in self._over:
                continue
            self._spent[trial.trial_id] = self._spent.get(trial.trial_id, 0.0) + passed
            if self._spent[trial.trial_id] > 60 * limit:
                self._over.add(trial.trial_id)
                trial.max_failures = 0  # it is not tried again
                ray.kill(actor)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial runs, perhaps again, and perhaps at another point."""
        record = self._record(trial)
        point = trial.config["task"]["point"]
        if record.point != point:
            record.points.append([record.experiences, record.point])
            record.point = point
        self._at_work.add(record.trial)
        record.write(self.directory)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Take in a report."""
        record = self._record(trial)
        record.experiences = result["experiences"]
        if "objective" in result:
            record.history = [entry for entry in record.history if entry[0] < record.experiences]
            record.history.append([record.experiences, result["objective"]])
        if result["status"] == RUNNING:
            return
        record.status, record.error = result["status"], result.get("error")
        record.values, record.runs = result.get("values", {}), result.get("runs", [])
        record.entered, record.left, record.node = result["entered"], result["left"], result["node"]
        self._end(record)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take in that a trial goes on no more: it has said so itself before, or the scheduler has stopped it."""
        record = self._record(trial)
        if not record.ended:
            record.status = STOPPED
            self._end(record)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take in that a trial's process or node has died; it will go on."""
        record = self._record(trial)
        record.deaths += 1
        self._at_work.discard(record.trial)
        record.write(self.directory)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take in that a trial's process was killed because its time was over, or has died too often."""
        record = self._record(trial)
        if self.lost():
            return
        record.status = FAILED
        if trial.trial_id in self._over:
            record.error = f"it ran for more than budget.trial_minutes={self.sweep.budget.trial_minutes:g}"
        else:
            record.deaths += 1
            record.error = f"its process or node died {record.deaths} times (retries: {self.sweep.budget.retries})"
        self._end(record)

    def best(self) -> Record | None:
        """Return the best trial so far."""
        return best(self.records.values(), self.sweep.objectives)

    def table(self) -> Table:
        """Return the state of the sweep in one row."""
        records = list(self.records.values())
        count = {status: sum(record.status == status for record in records) for status in (DONE, STOPPED)}
        found = self.best()
        shown = "-" if found is None else f"{found.values[self.sweep.primary]:.4g} (trial {found.trial})"
        cells = {
            "trials": self.total,
            "running": len(self._at_work),
            "done": count[DONE],
            "stopped": count[STOPPED],
            "failed": sum(record.status in BROKEN for record in records),
            f"best {self.sweep.primary}": shown,
            "time": _clock(time.monotonic() - self._began),
            "left": self._time_left(),
        }
        table = Table(*map(Column, cells), title=self.sweep.title)
        table.add(*cells.values())
        return table

    def _record(self, trial: Any) -> Record:
        task = trial.config["task"]
        return self.records.setdefault(task["trial"], Record(task["trial"], task["point"]))

    def _end(self, record: Record) -> None:
        self._at_work.discard(record.trial)
        record.write(self.directory)
        ended = sum(other.ended for other in self.records.values())
        found = self.best()
        if found is not None:
            self.log({f"best/{metric}": value for metric, value in found.values.items()}, ended)
        target = self.sweep.budget.target
        if target is not None and record.status == DONE:
            value = record.values[self.sweep.primary]
            self.reached |= value >= target if self.sweep.objectives[self.sweep.primary] == "max" else value <= target
        if not self.console.is_terminal:
            values = ", ".join(f"{metric} {value:.4g}" for metric, value in record.values.items())
            self.console.print(
                f"[{ended}/{self.total}] trial {record.trial} {record.status}: {values or record.error or ''}",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )

    def _time_left(self) -> str:
        ended = sum(record.ended for record in self.records.values())
        passed, fresh = time.monotonic() - self._began, ended - self._before
        left = passed / fresh * (self.total - ended) if fresh else None
        if self.sweep.budget.minutes is not None:
            budget = self.sweep.budget.minutes * 60 - passed
            left = budget if left is None else min(left, budget)
        return "-" if left is None else _clock(max(0.0, left))


class Target(Stopper):
    """Ends a sweep when its target is reached."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return that no trial is stopped on its own."""
        return False

    def stop_all(self) -> bool:
        """Return whether the target is reached."""
        return self.follower.reached


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
