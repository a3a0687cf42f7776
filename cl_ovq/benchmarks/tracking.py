"""What tracking costs: the same run with and without it, in turn."""

from __future__ import annotations

import copy
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager
from typing import Any
from unittest.mock import patch

from rich.console import Console

import cl_ovq.runs.run as one_run
from cl_ovq.config import ExperimentConfig
from cl_ovq.runs.provenance import code_revision, package_versions
from cl_ovq.runs.run import run_experiment
from cl_ovq.tracking import Tracker, open_client
from cl_ovq.tracking.store import absolute_uri

BATCH = 50
MODES = ("without tracking", "with tracking")


def measure_tracking(config: ExperimentConfig, rounds: int) -> dict[str, Any]:
    """Time runs with and without tracking, with default settings, in a store of their own.

    One run of each comes first and is not counted: it imports packages and makes the store.

    Args:
        config: an experiment; its own tracking options but `enabled` and `uri` hold.
        rounds: runs of each kind, in turn.

    Returns:
        `rows`, with `mode`, `wall` and `processor` seconds of the training process (median, minimum and maximum), and
        their `overhead` over the runs without, median over rounds; `waited`, the seconds that the training process
        spent in tracking's calls, its wait at the end included, and `waited_share` of its wall time; `batch`, the
        seconds that the store takes for a batch of metrics; `rounds` and `machine`. The share is exact where the
        difference of two runs is lost in their spread.
    """
    walls: dict[str, list[float]] = {mode: [] for mode in MODES}
    cpus: dict[str, list[float]] = {mode: [] for mode in MODES}
    waited: list[float] = []
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for attempt in range(rounds + 1):
            for mode in MODES if attempt % 2 else reversed(MODES):
                run: Any = copy.deepcopy(config)
                run.tracking.enabled, run.tracking.uri = mode == MODES[1], None
                run.output_dir = f"{mode.split()[0]}-{attempt}"
                wall, cpu = time.perf_counter(), time.process_time()
                with _clocked() as spent:
                    run_experiment(run, Console(quiet=True))
                if attempt:
                    walls[mode].append(time.perf_counter() - wall)
                    cpus[mode].append(time.process_time() - cpu)
                    if mode == MODES[1]:
                        waited.append(sum(spent))
        batch = _batch_seconds()
    rows = [{"mode": mode, "wall": _spread(walls[mode]), "processor": _spread(cpus[mode])} for mode in MODES]
    for row in rows:
        row["overhead"] = {
            kind: statistics.median(
                times[row["mode"]][i] / times[MODES[0]][i] - 1  # type: ignore[index]
                for i in range(rounds)
            )
            for kind, times in (("wall", walls), ("processor", cpus))
        }
    return {
        "rows": rows,
        "waited": _spread(waited),
        "waited_share": statistics.median(w / wall for w, wall in zip(waited, walls[MODES[1]], strict=True)),
        "batch": {"metrics": BATCH, "seconds": batch},
        "rounds": rounds,
        "machine": {"cores": os.cpu_count(), **code_revision(), **package_versions()},
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "minimum": min(values), "maximum": max(values)}


def _batch_seconds(batches: int = 20) -> dict[str, float]:
    """Return the seconds of a batch of `BATCH` metrics into the default store here."""
    from mlflow.entities import Metric

    client = open_client(absolute_uri(None))
    run = client.create_run(client.create_experiment("batches")).info.run_id
    seconds = []
    for step in range(batches):
        began = time.perf_counter()
        client.log_batch(run, metrics=[Metric(f"metric {i}", 0.5, 0, step) for i in range(BATCH)])
        seconds.append(time.perf_counter() - began)
    return _spread(seconds)


@contextmanager
def _clocked() -> Iterator[list[float]]:
    """Yield a list that fills with the seconds of each call into tracking."""
    spent: list[float] = []

    def clocked(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent.append(time.perf_counter() - began)

        return wrapper

    methods = ("__init__", "__exit__", "log", "tag", "log_file", "log_input", "log_model")
    with ExitStack() as stack:
        for owner, names in ((Tracker, methods), (one_run, ("warm_up", "check_store"))):
            for name in names:
                stack.enter_context(patch.object(owner, name, clocked(getattr(owner, name))))
        ask = clocked(Tracker.run_id.fget)  # type: ignore[attr-defined]
        stack.enter_context(patch.object(Tracker, "run_id", property(ask)))
        yield spent
