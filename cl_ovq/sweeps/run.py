"""Runs a sweep: trials by Ray Tune, the best one on fresh seeds, everything in MLflow."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from cl_ovq.errors import UserError
from cl_ovq.imports import digests
from cl_ovq.paths import expanded, write_atomically
from cl_ovq.runs.checking import find_device
from cl_ovq.runs.folder import locked
from cl_ovq.runs.provenance import code_revision, warn_of_changed_imports
from cl_ovq.runs.reuse import FinishedRuns
from cl_ovq.runs.run_logging import check_store, experiment_of, open_tracker
from cl_ovq.sweeps.cluster import connected
from cl_ovq.sweeps.files import Sweep
from cl_ovq.sweeps.importance import doubts, importances
from cl_ovq.sweeps.outcome import Outcome, point_tags
from cl_ovq.sweeps.records import Record, read_records
from cl_ovq.tracking import Tracker, warm_up
from cl_ovq.tracking.store import absolute_uri
from streams import STREAMS, StreamDataError
from streams.shared_data import collecting

DEFINITION = "sweep.json"


def run_sweep(sweep: Sweep, directory: Path, console: Console, *, resume: bool = False) -> Outcome:
    """Run a sweep to its end, to the end of its budget, or to Ctrl-C.

    Args:
        sweep: a loaded sweep.
        directory: where everything of it is kept.
        console: where progress is drawn.
        resume: whether to go on with the sweep of that directory: what has ended is not run again, and what was at work
            goes on from its last checkpoint.

    Raises:
        UserError: the directory holds a sweep that is not to be resumed, or another one, or one that is still at work,
            or there is no cluster.
    """
    with locked(directory.absolute(), "--directory") as held:
        return _run_sweep(sweep, held, console, resume=resume)


def _run_sweep(sweep: Sweep, directory: Path, console: Console, *, resume: bool) -> Outcome:
    _check_directory(sweep, directory, resume=resume)
    base = sweep.config({}, sweep.selection.seeds[0])
    if base.tracking.enabled:
        warm_up()
        check_store(base, f"sweep {sweep.name}", console)
    write_atomically(directory / DEFINITION, json.dumps(sweep.definition(), indent=2) + "\n")
    outcome = Outcome(sweep, directory, [])
    with contextlib.suppress(_Interrupted), _tracked(sweep, directory, resume=resume) as tracker:
        began = time.monotonic()
        with connected(sweep.cluster) as watch:
            _run(outcome, _job(sweep, directory, tracker), tracker, console, watch.lost)
        outcome.seconds = time.monotonic() - began
        outcome.run_id = tracker.run_id if tracker else None
        outcome.importances, outcome.doubts = importances(sweep, outcome.records), doubts(sweep, outcome.records)
        _publish(outcome, tracker)
        if outcome.interrupted == INTERRUPTED:
            raise _Interrupted  # for MLflow to mark the sweep so
    return outcome


INTERRUPTED = "interrupted"


class _Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, with everything written that was found."""


def _check_directory(sweep: Sweep, directory: Path, *, resume: bool) -> None:
    path = directory / DEFINITION
    if not path.exists() or not read_records(directory):  # the latter failed before its first trial
        if resume:
            raise UserError(f"--resume: there is no sweep in {directory}")
        return
    if not resume:
        raise UserError(
            f"{directory} already contains a sweep: add --resume to continue it, or choose another --directory"
        )
    there, here = json.loads(path.read_text(encoding="utf-8")), sweep.definition()
    for key in here:
        if there.get(key) != here[key]:
            raise UserError(f"--resume: the sweep in {directory} is a different one: {key} was {there.get(key)}")


@contextlib.contextmanager
def _tracked(sweep: Sweep, directory: Path, *, resume: bool) -> Iterator[Tracker | None]:
    config: Any = sweep.config({}, sweep.selection.seeds[0])
    if not config.tracking.enabled:
        yield None
        return
    tags = {"sweep": sweep.name, "seed": ", ".join(map(str, sweep.selection.seeds))}
    config.tracking.tags = dict(config.tracking.tags) | tags
    device = find_device("cpu" if sweep.resources.gpus else config.device)
    with open_tracker(config, directory, f"sweep {sweep.name}", device, resume=resume) as tracker:
        yield tracker


def _job(sweep: Sweep, directory: Path, tracker: Tracker | None) -> Any:
    from cl_ovq.sweeps.trials import Job

    config = sweep.config({}, sweep.selection.seeds[0])
    code = code_revision()
    settings = {
        # Of what came from the environment the text, which each trial reads there itself.
        "tracking.uri": config.unresolved.get("tracking.uri", (absolute_uri(config.tracking.uri),))[0],
        "tracking.experiment": experiment_of(config),
        "tracking.tags": {
            "sweep": sweep.name,
            # Shipped code is no checkout, and does not know its revision.
            "revision": str(code["revision"] or code["version"]),
            "dirty": str(code["dirty"]),
        },
    }
    stored = FinishedRuns() if sweep.reuse is None else FinishedRuns.under(expanded(sweep.reuse).absolute())
    return Job(sweep, str(directory), settings, tracker.key if tracker else None, stored)


def _run(outcome: Outcome, job: Any, tracker: Tracker | None, console: Console, lost: Callable[[], bool]) -> None:
    """Run trials and tests, and put what they found into the outcome; `lost` says whether Ray is gone."""
    from cl_ovq.sweeps.progress import Follower

    sweep, directory = outcome.sweep, outcome.directory
    records = read_records(directory)
    if digests():  # a large sweep has many results to read
        for folder, found in {sweep.reuse: job.stored, directory: FinishedRuns.under(directory)}.items():
            warn_of_changed_imports(console, found.imports(), f"runs in {folder}")
    shared = {"job": job, "data": _read_data(sweep)}

    def log(values: dict[str, float], step: int) -> None:
        if tracker is not None:
            tracker.log(values, step)

    with Follower(sweep, directory, records, console, log, lost) as follower:
        finished = _tune(sweep, directory, shared, follower)
    outcome.records = [records[number] for number in sorted(records)]
    if not finished:
        outcome.interrupted = INTERRUPTED
    elif not all(record.ended for record in outcome.records) or len(records) < sweep.trials:
        outcome.interrupted = "target reached" if follower.reached else "time budget spent"
    chosen = outcome.best
    if chosen is not None and finished and sweep.selection.test_seeds:
        try:
            outcome.tests = _test(sweep, shared, chosen, console)
        except (KeyboardInterrupt, SystemExit):  # the trials are all there
            outcome.interrupted = INTERRUPTED


def _read_data(sweep: Sweep) -> Mapping[Any, Any]:
    """Read the data sets that trials need, so that Ray's object store holds them once on every node."""
    points = [point for point in sweep.space.samples() if any(key.startswith("stream.") for key in point)] or [{}]
    read: list[tuple[str, Any]] = []
    with collecting() as data:
        for point in points:
            stream = sweep.config(point, 0).stream
            entry = STREAMS[stream.name]
            if entry.read is None or (stream.name, stream.options) in read:
                continue
            read.append((stream.name, stream.options))
            try:
                entry.read(stream.options)
            except StreamDataError as error:
                raise UserError(f"stream: {error}") from error
    return data


def _tune(sweep: Sweep, directory: Path, shared: Mapping[str, Any], follower: Any) -> bool:
    """Run the trials that have not ended; return False after Ctrl-C."""
    import ray
    from ray import tune

    from cl_ovq.sweeps.progress import Target
    from cl_ovq.sweeps.schedulers import make_scheduler
    from cl_ovq.sweeps.search import OptunaSearcher, left_over, parameter_space
    from cl_ovq.sweeps.trials import run_trial

    records: dict[int, Record] = follower.records
    listed = sweep.points() is not None
    tasks = left_over(sweep, records) if listed else []
    left = len(tasks) if listed else sweep.trials - sum(record.ended for record in records.values())
    if not left or follower.reached:
        return True
    resources = {"cpu": sweep.resources.cpus, "gpu": sweep.resources.gpus}
    if sweep.resources.memory_gib is not None:
        resources["memory"] = sweep.resources.memory_gib * 2**30
    room = max(1, math.floor(ray.cluster_resources().get("CPU", 1) / sweep.resources.cpus))
    concurrency = sweep.budget.concurrency or (None if listed else room)
    storage = sweep.cluster.storage or str(directory / "ray")
    population = sweep.scheduler.name == "pbt"

    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, **shared), resources),
        param_space=parameter_space(tasks) if listed else {},
        tune_config=tune.TuneConfig(
            search_alg=None if listed else OptunaSearcher(sweep, directory, records),
            scheduler=make_scheduler(sweep, [record for record in records.values() if record.ended]),
            num_samples=1 if listed else left,
            max_concurrent_trials=concurrency,
            time_budget_s=None if sweep.budget.minutes is None else sweep.budget.minutes * 60,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['task']['trial']:04d}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=f"start-{int(time.time() * 1000)}",
            storage_path=storage,
            stop=Target(follower),
            callbacks=[follower],
            failure_config=tune.FailureConfig(max_failures=sweep.budget.retries),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=None if population else 1),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except (KeyboardInterrupt, SystemExit):  # the latter after SIGTERM
        return False
    return True


def _test(sweep: Sweep, shared: Mapping[str, Any], chosen: Record, console: Console) -> list[dict[str, Any]]:
    """Run the chosen configuration on the test stream, each seed where there is room."""
    import ray

    from cl_ovq.sweeps.trials import run_test

    resources = sweep.resources
    options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    if resources.memory_gib is not None:
        options["memory"] = resources.memory_gib * 2**30
    remote = ray.remote(max_retries=sweep.budget.retries, **options)(run_test)
    seeds = range(sweep.selection.test_seeds)
    with console.status(f"trial {chosen.trial} on the test stream, {len(seeds)} fresh seeds"):
        job, data = ray.put(shared["job"]), ray.put(shared["data"])
        return ray.get([remote.remote(job, data, chosen.point, seed) for seed in seeds])


def _publish(outcome: Outcome, tracker: Tracker | None) -> None:
    """Write what was found, and hand it to MLflow."""
    paths = outcome.write()
    if tracker is None:
        return
    chosen = outcome.best
    if chosen is not None:
        tracker.tag({"best/trial": chosen.trial, **point_tags(chosen.point), "command": outcome.command(chosen)})
        steps = sum(record.ended for record in outcome.records)
        tested = {f"test/{name}": found.mean for name, found in outcome.test_metrics().items()}
        tracker.log(tested | {f"importance/{key}": share for key, share in outcome.importances.items()}, steps)
    tracker.tag({"mlflow.note.content": outcome.note()})
    for path in paths:
        tracker.log_file(path)
