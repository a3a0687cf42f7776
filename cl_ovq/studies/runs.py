"""Runs a study: tuning on validation data, then the seeds that are reported, skipping whatever is done."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cl_ovq.config import ExperimentConfig
from cl_ovq.config.protocols import STREAM
from cl_ovq.errors import UserError
from cl_ovq.metric_names import better
from cl_ovq.paths import safe_name
from cl_ovq.runs.folder import locked
from cl_ovq.runs.pool import run_many
from cl_ovq.runs.provenance import warn_of_changed_imports
from cl_ovq.runs.result import Result
from cl_ovq.runs.reuse import Fingerprints, FinishedRuns, copy_run, fingerprints, holds_run
from cl_ovq.runs.run_logging import check_store, experiment_of
from cl_ovq.studies.files import Study
from cl_ovq.studies.tables import RowResult, StudyResult
from cl_ovq.training import quantity_of


@dataclass(frozen=True)
class Task:
    """One run of a study: a row's point of the grid, a seed, and the stream on which it is judged."""

    row: int
    point: int
    seed: int
    stream: str


def run_study(study: Study, directory: Path, console: Console, *, jobs: int = 1) -> StudyResult:
    """Run what is not done yet, and return the table.

    Args:
        study: a loaded study.
        directory: holds a directory per row with its runs, found again by their configuration.
        console: where progress is drawn, and every run named as it ends.
        jobs: runs at a time; more than one run in processes of their own.

    Raises:
        UserError: no run succeeded; the first error is named. Or another study is at work in the directory, or a store
            can never be opened.
    """
    with locked(directory, "--directory"):
        return _run_all(study, directory, console, jobs)


def _run_all(study: Study, directory: Path, console: Console, jobs: int) -> StudyResult:
    tasks = _Tasks(study, directory)
    warn_of_changed_imports(console, tasks.finished.imports(tasks.own.values()), f"runs in {directory}")
    tasks.check_stores(console)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        shown = progress.add_task(escape(study.name), total=tasks.total, completed=tasks.done)

        def ended(task: Task, error: BaseException | None) -> None:
            tasks.finish(task, None if error is None else str(error))
            line = f"{tasks.done} of {tasks.total}: {tasks.describe(task)}"
            progress.console.print(line, soft_wrap=True, markup=False)
            progress.update(shown, completed=tasks.done)

        run_many(tasks.ready, ended, jobs=jobs)
    return tasks.result(console)


class _Tasks:
    """What a study has to run, what of it is done, and what can run now.

    Tasks that differ only in what is measured on the finished model are trained once: the others wait for the first
    one, and start from a copy of its run.
    """

    def __init__(self, study: Study, directory: Path) -> None:
        self.study, self.directory = study, directory
        self.results: dict[Task, Result] = {}
        self.failed: dict[Task, str] = {}
        self.started: set[Task] = set()
        self.chosen: dict[int, int] = {i: 0 for i, row in enumerate(study.rows) if len(row.points) == 1}
        self.finished = FinishedRuns.under(directory)
        rows = range(len(study.rows))
        tasks = [t for i in rows for t in (*self._tuning(i), *self._reported(i, range(len(study.rows[i].points))))]
        self.own: dict[Task, Fingerprints] = {task: fingerprints(self._configured(task)) for task in tasks}
        self.sharing = Counter(found.training for found in self.own.values())
        for task in tasks:
            found = self._find(task)
            if found is not None:
                self.results[task] = found

    @property
    def total(self) -> int:
        """Runs altogether."""
        return sum(len(list(self._tuning(i))) + len(self.study.seeds) for i in range(len(self.study.rows)))

    @property
    def done(self) -> int:
        """Runs that were found done, as far as they count now."""
        tuned = sum(task in self.results for i in range(len(self.study.rows)) for task in self._tuning(i))
        reported = sum(task in self.results for i in self.chosen for task in self._reported(i, [self.chosen[i]]))
        return tuned + reported

    def check_stores(self, console: Console) -> None:
        """Check the stores of the runs to come before the first: tuning, which is not tracked, may take hours."""
        stores = {}
        for index in range(len(self.study.rows)):
            for task in self._reported(index, [self.chosen.get(index, 0)]):
                config = self.config(task)
                if config.tracking.enabled and task not in self.results:
                    stores[config.tracking.uri, experiment_of(config)] = config
        for config in stores.values():
            check_store(config, self.study.name, console)

    def config(self, task: Task) -> ExperimentConfig:
        """The configuration of a run. One whose model others are to start from is kept as a checkpoint."""
        config: Any = self._configured(task)
        if self.sharing[self.own[task].training] > 1:
            config.checkpoint.enabled = True
        return config

    def _configured(self, task: Task) -> ExperimentConfig:
        row = self.study.rows[task.row]
        experiences = self.study.tuning.experiences if task.stream == STREAM else None
        return row.config(row.points[task.point], task.seed, task.stream, experiences)

    def path(self, task: Task) -> Path:
        """Where a run that has to be made goes."""
        digest = self.own[task].whole[:12]
        return self._row_directory(task.row) / f"{task.stream}-seed-{task.seed}-{digest}"

    def ready(self) -> Iterator[tuple[Task, ExperimentConfig]]:
        """Runs that are to be made now: tuning, and the reported seeds of rows whose tuning is over."""
        for index in range(len(self.study.rows)):
            tuning = list(self._tuning(index))
            if index not in self.chosen and all(task in self.results or task in self.failed for task in tuning):
                self._choose(index)
            tasks = [*tuning, *(self._reported(index, [self.chosen[index]]) if index in self.chosen else [])]
            for task in tasks:
                if task not in self.results and task not in self.started and not self._waits(task):
                    self.started.add(task)
                    self._prepare(task)
                    yield task, self._in_its_place(task)

    def _in_its_place(self, task: Task) -> ExperimentConfig:
        run: Any = self.config(task)
        run.output_dir = str(self.path(task))
        return run

    def _waits(self, task: Task) -> bool:
        """Whether a run is at work that trains the model of this one."""
        at_work = self.started - self.results.keys() - self.failed.keys()
        return any(self.own[other].training == self.own[task].training for other in at_work)

    def _prepare(self, task: Task) -> None:
        """Give a run the directory of one that was trained alike: that one itself if nothing else wants it, or a copy.

        Where that cannot be done, the run is trained.
        """
        target = self.path(task)
        if holds_run(target):
            return
        wanted = {found.whole for found in self.own.values()}
        for source in self.finished.trained(self.own[task])[:1]:
            with contextlib.suppress(OSError):
                if source.parent == target.parent and self.finished[source].whole not in wanted:
                    self.finished.move(source, target)
                else:
                    copy_run(source, target)

    def finish(self, task: Task, error: str | None) -> None:
        """Take in a run that has ended."""
        if not error:
            self.finished.add(self.path(task))
        found = None if error else self._find(task)
        if found is None:
            self.failed[task] = error or "left no results"
        else:
            self.results[task] = found

    def describe(self, task: Task) -> str:
        """A run that has ended, in one line."""
        row = self.study.rows[task.row]
        point = "".join(f", {key}={value}" for key, value in row.points[task.point].items())
        metric = self._metric(task.row)
        value = self.results[task].metrics.get(metric) if task in self.results else None
        outcome = "failed" if task in self.failed else f"{metric} {'-' if value is None else format(value, '.4g')}"
        if task in self.results and self.results[task].diverged:
            outcome = str(self.results[task].verdict)
        return f"{row.name}{point}, seed {task.seed}, {task.stream}: {outcome}"

    def result(self, console: Console) -> StudyResult:
        """The table, with the failures said."""
        rows: list[RowResult] = []
        lost: dict[str, str] = {}
        for index, row in enumerate(self.study.rows):
            if index not in self.chosen:
                if not any(task.row == index for task in self.failed):
                    lost[row.name] = "a tuning run diverged at every point of its grid"
                continue
            reported = self._reported(index, [self.chosen[index]])
            runs = [self.results[task] for task in reported if task in self.results]
            scores = (
                {json.dumps(row.points[p]): self._score(index, p) for p in range(len(row.points))} if row.grid else {}
            )
            if runs:
                rows.append(RowResult(row.labels, row.points[self.chosen[index]], scores, runs))
        for task, error in self.failed.items():
            console.print(
                f"[red]failed:[/] {escape(self.study.rows[task.row].name)}, seed {task.seed}: {escape(error)}",
                soft_wrap=True,
            )
        for name, reason in lost.items():
            console.print(f"[red]not reported:[/] {escape(name)}: {escape(reason)}", soft_wrap=True)
        failed = {str(self.path(task)): error for task, error in self.failed.items()} | lost
        if not rows:
            raise UserError(f"study '{self.study.name}': no run succeeded: {next(iter(failed.values()))}")
        return StudyResult(self.study, rows, failed)

    def _tuning(self, index: int) -> Iterator[Task]:
        points = self.study.rows[index].points
        if len(points) > 1:
            for point in range(len(points)):
                for seed in self.study.tuning.seeds:
                    yield Task(index, point, seed, STREAM)

    def _reported(self, index: int, points: Any) -> Iterator[Task]:
        for point in points:
            for seed in self.study.seeds:
                yield Task(index, point, seed, "test")

    def _score(self, index: int, point: int) -> float | None:
        """Mean judgement of a point of the grid over the tuning seeds; None where a run failed or it is undefined."""
        tasks = [task for task in self._tuning(index) if task.point == point]
        values = [self._judged(index, self.results[task]) if task in self.results else None for task in tasks]
        numbers = [value for value in values if value is not None]
        return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None

    def _judged(self, index: int, result: Result) -> float | None:
        if result.diverged is not None:
            return None
        if self.study.tuning.over_lengths:
            return sum(record["value"] for record in result.lengths) / len(result.lengths)
        return result.metrics.get(self._metric(index))

    def _metric(self, index: int) -> str:
        """The metric by which a row is tuned."""
        row = self.study.rows[index]
        return self.study.tuning.metric or quantity_of(row.config(row.points[0], 0, "test").stream.name)

    def _choose(self, index: int) -> None:
        scores = {point: self._score(index, point) for point in range(len(self.study.rows[index].points))}
        valid = {point: score for point, score in scores.items() if score is not None}
        if valid:
            sign = better(self._metric(index))
            self.chosen[index] = max(valid, key=lambda point: sign * valid[point])

    def _row_directory(self, index: int) -> Path:
        return self.directory / safe_name(self.study.rows[index].name).lower()

    def _find(self, task: Task) -> Result | None:
        found = self.finished.same(self.own[task])
        here = [directory for directory in found if directory.parent == self._row_directory(task.row)]
        return Result.read(here[0]) if here else None
