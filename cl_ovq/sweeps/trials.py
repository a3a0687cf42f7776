"""What a Ray worker does: a trial of a sweep, or a run of the chosen configuration on the test stream."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cl_ovq.config import ExperimentConfig
from cl_ovq.errors import UserError
from cl_ovq.paths import RESULTS
from cl_ovq.runs.callbacks import Callback
from cl_ovq.runs.checkpoints.files import NAME as CHECKPOINT
from cl_ovq.runs.checkpoints.history import NAME as HISTORY
from cl_ovq.runs.folder import locked
from cl_ovq.runs.result import Result, carried_bytes
from cl_ovq.runs.reuse import FinishedRuns, copy_run, fingerprints, holds_run
from cl_ovq.runs.run import Run, run_experiment
from cl_ovq.sweeps.files import BYTES, Sweep
from cl_ovq.sweeps.pbt_checkpoint import set_configuration
from cl_ovq.sweeps.records import DIVERGED, DONE, FAILED, OUT_OF_MEMORY, RUNNING, mean, trial_directory
from cl_ovq.sweeps.space import Point
from cl_ovq.tracking import RunKey
from cl_ovq.training.divergence import DivergedError
from streams.shared_data import provide

PATIENCE_SECONDS = 60.0  # workers of a driver or node that died may go on for a while
NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")
Report = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What all trials of a sweep share.

    Attributes:
        sweep: the sweep.
        directory: of the sweep, as an absolute path.
        settings: laid over every configuration: where it is tracked.
        parent: key of the sweep's MLflow run; None where nothing is tracked.
        stored: runs whose results, or whose training, may be taken.
    """

    sweep: Sweep
    directory: str
    settings: Point
    parent: str | None
    stored: FinishedRuns

    def run(self, config: ExperimentConfig, callbacks: Sequence[Callback] = ()) -> tuple[Result, Report]:
        """Run a configuration, or take its result from the store; return the result, and what to report of it.

        A stored run that was trained alike is copied, and what it has not measured yet on its model is measured.
        """
        began, own, directory = time.time(), fingerprints(config), Path(str(config.output_dir))
        parent = None if self.parent is None else RunKey(self.parent)
        same = self.stored.same(own)
        trained = [] if holds_run(directory) else self.stored.trained(own)
        if same:
            result = Result.read(same[0])
        else:
            if trained:
                copy_run(trained[0], directory)
            result = run_experiment(config, Console(quiet=True), parent, resume=True, callbacks=callbacks)
        seconds = time.time() - began
        run = {
            "seed": config.seed,
            "run_id": result.run_id,
            "output_dir": result.output_dir,
            "metrics": dict(result.metrics) | {BYTES: carried_bytes(result)},
            "seconds": seconds,
            "setup_seconds": max(0.0, seconds - result.provenance["wall_seconds"]),
            "reused": bool(same or trained),
            "diverged": result.diverged,
        }
        return result, run


def run_trial(config: dict[str, Any], *, job: Job, data: Mapping[Any, Any]) -> None:
    """Run a trial and report to Ray Tune after every experience, and at the end.

    What goes wrong in it is reported too, and not raised: that would cost the worker, and its imports, and Ray would
    try again what must fail again.

    Args:
        config: `task`, with the trial's number (`trial`) and its values of the space (`point`).
        job: what all trials share.
        data: data sets that were read already.
    """
    from ray import tune

    entered = time.time()
    provide(data)
    trial = Trial(job, config["task"]["trial"], config["task"]["point"])
    try:
        end = trial.run()
    except Exception as error:  # of whatever kind: one trial must not end the sweep
        end = {"status": _status(error), "error": f"{type(error).__name__}: {error}"}
    end |= {"experiences": trial.experiences, "entered": entered, "left": time.time(), "node": _node(), "done": True}
    tune.report(end)


class Trial:
    """A trial in its worker.

    Args:
        job: what all trials share.
        number: of the trial.
        point: its values of the space.
    """

    def __init__(self, job: Job, number: int, point: Point) -> None:
        self.job, self.sweep = job, job.sweep
        self.number, self.point = number, point
        self.directory = trial_directory(Path(job.directory), number)
        self.runs: list[Report] = []
        self.experiences = 0

    def run(self) -> Report:
        """Run its seeds one after the other."""
        with locked(self.directory, "--directory", PATIENCE_SECONDS):
            return self._run_seeds()

    def _run_seeds(self) -> Report:
        self._take_checkpoint()
        for seed in self.sweep.selection.seeds:
            before = self.experiences
            result, run = self.job.run(self._config(seed), [_Reports(self, before)])
            if result.diverged is not None:
                lost = result.diverged
                raise DivergedError(lost["step"], lost["experience"], lost["reason"])
            self.runs.append(run)
            self.experiences = before + len(result.matrix) - 1
        values = {}
        for metric in self.sweep.objectives:
            value = mean([run["metrics"][metric] for run in self.runs])
            if value is None:
                raise UserError(f"objectives.{metric}: it is undefined for this run")
            values[metric] = value
        return {"status": DONE, "objective": values[self.sweep.primary], "values": values, "runs": self.runs}

    def _config(self, seed: int) -> ExperimentConfig:
        names = {
            "output_dir": str(self.directory / f"seed_{seed}"),
            "tracking.run_name": f"{self.sweep.name} trial {self.number} seed {seed}",
        }
        return self.sweep.config(self.point, seed, more=names | _tagged(self.job.settings, trial=self.number))

    def report(self, experiences: int, metrics: Mapping[str, float], *, last: bool) -> None:
        """Report an experience to Ray Tune, with a checkpoint.

        Args:
            experiences: learned so far by all seeds.
            metrics: of the seed that is running.
            last: whether the seed has no more.
        """
        from ray import tune

        self.experiences = experiences
        if last and len(self.runs) + 1 == len(self.sweep.selection.seeds):
            return  # the end is reported when the results are written, so that no scheduler stops it before
        report: Report = {"status": RUNNING, "experiences": self.experiences, "metrics": dict(metrics)}
        primary = self.sweep.primary
        value = mean([*(run["metrics"].get(primary) for run in self.runs), metrics.get(primary)])
        if value is not None:
            report["objective"] = value
        with tempfile.TemporaryDirectory() as folder:
            self._fill_checkpoint(Path(folder))
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))

    def _fill_checkpoint(self, folder: Path) -> None:
        """Put into a folder what another node needs to go on: results of the seeds that are over, and a checkpoint."""
        for path in self.directory.glob("seed_*"):
            kept = (RESULTS,) if (path / RESULTS).exists() else (CHECKPOINT, HISTORY)
            (folder / path.name).mkdir()
            for name in kept:
                if (path / name).exists():
                    shutil.copy(path / name, folder / path.name / name)

    def _take_checkpoint(self) -> None:
        """Put Ray's checkpoint where the run looks for its own: this may be another node, or another trial's."""
        from ray import tune

        checkpoint = tune.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                for path in sorted(Path(folder).glob("seed_*/*")):
                    target = self.directory / path.parent.name
                    target.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, target / f".{path.name}")
                    (target / f".{path.name}").replace(target / path.name)
        if self.sweep.scheduler.name == "pbt":
            for seed in self.sweep.selection.seeds:
                set_configuration(self.directory / f"seed_{seed}" / CHECKPOINT, self._config(seed))


class _Reports(Callback):
    """Reports a run's experiences as those of its trial, which had learned some before."""

    def __init__(self, trial: Trial, before: int) -> None:
        self.trial, self.before = trial, before

    def experience_end(self, run: Run, row: int) -> None:
        self.trial.report(self.before + row, run.metrics, last=row == run.experiences)


def run_test(job: Job, data: Mapping[Any, Any], point: Point, seed: int) -> Report:
    """Run the chosen configuration with a fresh seed on the test stream; return what is to be known of it."""
    provide(data)
    names = {
        "output_dir": str(Path(job.directory) / "test" / f"seed_{seed}"),
        "tracking.run_name": f"{job.sweep.name} test seed {seed}",
    }
    settings = names | _tagged(job.settings, trial="test")
    return job.run(job.sweep.config(point, seed, stream="test", more=settings))[1]


def _tagged(settings: Point, **tags: Any) -> Point:
    """Return settings with further tags of the run."""
    return settings | {"tracking.tags": settings["tracking.tags"] | {name: str(tag) for name, tag in tags.items()}}


def _status(error: Exception) -> str:
    if isinstance(error, DivergedError):
        return DIVERGED
    text = str(error).lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(phrase in text for phrase in NO_MEMORY):
        return OUT_OF_MEMORY
    return FAILED


def _node() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
