"""What a sweep costs: throughput against the same runs in one process, start of a trial, the driver's own work."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cl_ovq.errors import UserError
from cl_ovq.runs.provenance import code_revision, device_name
from cl_ovq.runs.run import run_experiment
from cl_ovq.sweeps import Sweep, load_sweep
from cl_ovq.sweeps.cluster import connected
from cl_ovq.sweeps.progress import Follower
from cl_ovq.sweeps.run import run_sweep

REPORTS = 5  # of a trial that does nothing


def measure_sweep(
    name: str, overrides: Sequence[str], cores: int, empty_trials: int, console: Console
) -> dict[str, Any]:
    """Measure a sweep on this machine.

    Args:
        name: of the sweep.
        overrides: `key=value`.
        cores: that both ways may use.
        empty_trials: trials that do nothing, for the driver's own time; 0 for none.
        console: where progress is drawn.

    Returns:
        Seconds of the same runs back to back in one process that is warm, with one thread and with as many as cores;
        seconds of the sweep, from its start with no Ray to its last trial; `share`, the throughput of the sweep as a
        share of the faster of the two; seconds that trials took to start on a warm worker; and seconds of the driver
        for a trial.

    Raises:
        UserError: the sweep has no list of points, or a trial of it failed.
    """
    sweep = load_sweep(name, [*overrides, f"cluster.cpus={cores}", "selection.test_seeds=0", "tracking.enabled=false"])
    points = sweep.points()
    if points is None:
        raise UserError("bench sweep: the search must be random or grid: Optuna's trials depend on results")
    with tempfile.TemporaryDirectory() as folder:
        console.print(f"{len(points)} trials on {cores} cores")
        began = time.perf_counter()
        outcome = run_sweep(sweep, Path(folder) / "sweep", console)
        swept = time.perf_counter() - began
        failed = [record for record in outcome.records if not record.values]
        if failed:
            raise UserError(f"bench sweep: trial {failed[0].trial} {failed[0].status}: {failed[0].error}")
        serial = {threads: _serial(sweep, points, threads, Path(folder)) for threads in dict.fromkeys((1, cores))}
        driver = _driver_seconds(sweep, empty_trials, Path(folder)) if empty_trials else None
    starts = outcome.starts()
    return {
        "sweep": sweep.name,
        "trials": len(points),
        "cores": cores,
        "sweep_seconds": swept,
        "serial_seconds": serial,
        "share": min(serial.values()) / swept,
        "start_seconds": {"median": statistics.median(starts), "maximum": max(starts)} if starts else None,
        "driver_seconds_per_trial": driver,
        "reports_per_trial": REPORTS,
        "device": device_name(torch.device("cpu")),
        "code": code_revision(),
    }


def _serial(sweep: Sweep, points: Sequence[Any], threads: int, folder: Path) -> float:
    """Return the seconds of all runs in this process, which one run has warmed up."""
    seed = sweep.selection.seeds[0]

    def run(number: int, point: Any) -> None:
        more = {"threads": threads, "output_dir": str(folder / f"serial-{threads}" / str(number))}
        run_experiment(sweep.config(point, seed, more=more), Console(quiet=True))

    run(-1, points[0])
    began = time.perf_counter()
    for number, point in enumerate(points):
        run(number, point)
    return time.perf_counter() - began


def _empty(config: dict[str, Any]) -> None:
    """Report as a trial does, and do nothing else."""
    from ray import tune

    for experience in range(1, REPORTS):
        tune.report({"status": "running", "experiences": experience, "objective": 0.5})
    end = {"status": "done", "experiences": REPORTS, "objective": 0.5, "values": {"accuracy": 0.5}}
    now = time.time()
    tune.report(end | {"entered": now, "left": now, "node": "none", "done": True})


def _driver_seconds(sweep: Sweep, trials: int, folder: Path) -> float:
    """Return the seconds that the driver needs for a trial in which nothing is done."""
    with connected(sweep.cluster) as watch:
        from ray import tune

        def run(number: int, name: str) -> float:
            tasks = [{"trial": trial, "point": {}} for trial in range(number)]
            follower = Follower(sweep, folder / name, {}, Console(quiet=True), lambda values, step: None, watch.lost)
            began = time.perf_counter()
            tune.Tuner(
                tune.with_resources(_empty, {"cpu": 1}),
                param_space={"task": tune.grid_search(tasks)},
                tune_config=tune.TuneConfig(reuse_actors=True),
                run_config=tune.RunConfig(storage_path=str(folder), name=name, callbacks=[follower], verbose=0),
            ).fit()
            return time.perf_counter() - began

        few, many = run(10, "few"), run(10 + trials, "many")
    return (many - few) / trials
