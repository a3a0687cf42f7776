"""One experiment over several seeds: each a run of its own, and their mean, spread and confidence interval."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy import stats

from cl_ovq.checking import check_config, find_device
from cl_ovq.config import ExperimentConfig
from cl_ovq.errors import UserError
from cl_ovq.experiment import (
    describe,
    load_stream,
    make_directory,
    run_experiment,
)
from cl_ovq.layout import check_store, open_tracker
from cl_ovq.results import Result, summary_metrics, undefined_metrics, write_atomically
from cl_ovq.tracking import Tracker, warm_up
from cl_ovq.tracking.notes import seeds_note

FILE_NAME = "seeds.json"


@dataclass(frozen=True)
class Aggregate:
    """A metric over seeds.

    Attributes:
        mean: over seeds.
        standard_deviation: of the sample (n - 1); None for one seed.
        interval: half the width of the 95 % confidence interval of the mean, from Student's t; None for one seed.
        seeds: number of seeds on which the metric is defined.
    """

    mean: float
    standard_deviation: float | None
    interval: float | None
    seeds: int

    def shown(self) -> str:
        """Return mean and interval as a table has them."""
        return f"{self.mean:.3f}" + ("" if self.interval is None else f" +- {self.interval:.3f}")


@dataclass(frozen=True)
class SeedsResult:
    """The runs of one configuration over several seeds.

    Attributes:
        metrics: aggregates by the name of the metric.
        runs: the result of each seed.
    """

    metrics: dict[str, Aggregate]
    runs: list[Result]

    def to_json(self) -> str:
        """Return the aggregates and all runs as JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)


def aggregate(values: Sequence[float]) -> Aggregate:
    """Return mean, standard deviation and confidence interval of a metric's values over seeds.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values to aggregate")
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return Aggregate(mean, None, None, 1)
    deviation = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return Aggregate(mean, deviation, half, count)


def run_seeds(config: ExperimentConfig, console: Console, *, resume: bool = False) -> SeedsResult:
    """Run `config.seeds` seeds, from `config.seed` on; with `resume` those that are finished are read, others go on.

    Each run has a directory `seed_<n>` under `output_dir`, or under a new one, and the whole is `seeds.json` there. In
    MLflow the runs are children of one that carries the aggregates.

    Raises:
        UserError: see `run_experiment`; nothing has been run then.
    """
    if resume and config.output_dir is None:
        raise UserError("--resume needs output_dir=DIR, the directory of the runs that are to go on")
    if not resume:
        check_config(config)
    seeds = range(config.seed, config.seed + config.seeds)
    if config.output_dir is not None and not resume:
        directory = Path(config.output_dir)
        if (directory / FILE_NAME).exists():
            raise UserError(f"output_dir: {directory} already holds the results of seeds: name another directory")
        for seed in seeds:
            check_config(_for_seed(config, seed, directory))
    load_stream(config)  # missing data is said before anything is written
    name = f"{describe(config).removesuffix(f' seed {config.seed}')} seeds {seeds[0]}-{seeds[-1]}"
    if not config.tracking.enabled:
        return _run_all(config, seeds, make_directory(config, name), console, None, resume=resume)
    warm_up()
    check_store(config, console)
    directory = make_directory(config, name)
    with open_tracker(config, directory, name, find_device(config.device), resume=resume) as parent:
        parent.tag({"seed": f"{seeds[0]}-{seeds[-1]}", "seeds": len(seeds)})
        whole = _run_all(config, seeds, directory, console, parent, resume=resume)
        _log_aggregates(whole, parent)
        parent.tag({"mlflow.note.content": seeds_note(whole.metrics, whole.runs)})
        parent.log_file(directory / FILE_NAME)
    return whole


def _run_all(
    config: ExperimentConfig,
    seeds: Sequence[int],
    directory: Path,
    console: Console,
    parent: Tracker | None,
    *,
    resume: bool,
) -> SeedsResult:
    results = [run_experiment(_for_seed(config, seed, directory), console, parent, resume=resume) for seed in seeds]
    numbers = [summary_metrics(result) for result in results]
    names = dict.fromkeys(name for found in numbers for name in found)
    metrics = {name: aggregate([found[name] for found in numbers if name in found]) for name in names}
    whole = SeedsResult(metrics, results)
    write_atomically(directory / FILE_NAME, whole.to_json() + "\n")
    return whole


def _log_aggregates(whole: SeedsResult, parent: Tracker) -> None:
    """Log every mean under the name that a seed's own metric has, at the same step, and its spread beside it."""
    first = whole.runs[0]
    experiences, steps = len(first.matrix) - 1, first.provenance["train_steps"]
    parent.log({name: math.nan for name in undefined_metrics(first) if name not in whole.metrics}, step=experiences)
    for name, found in whole.metrics.items():
        values = {name: found.mean}
        if found.standard_deviation is not None and found.interval is not None:
            values |= {f"{name}/standard_deviation": found.standard_deviation, f"{name}/interval": found.interval}
        parent.log(values, step=experiences if name in first.metrics else steps)


def _for_seed(config: ExperimentConfig, seed: int, directory: Path) -> ExperimentConfig:
    run: Any = copy.deepcopy(config)
    run.seed, run.seeds = seed, 1
    run.output_dir = str(directory / f"seed_{seed}")
    return run
