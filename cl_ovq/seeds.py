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

from cl_ovq.config import ExperimentConfig
from cl_ovq.errors import UserError
from cl_ovq.experiment import check_config, run_experiment
from cl_ovq.results import Result, summary_metrics, write_atomically

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


def run_seeds(config: ExperimentConfig, console: Console) -> SeedsResult:
    """Run `config.seeds` seeds, from `config.seed` on.

    With `output_dir`, each run has a directory `seed_<n>` under it, and the whole is `seeds.json` there.

    Raises:
        UserError: see `run_experiment`; nothing has been run then.
    """
    directory = Path(config.output_dir) if config.output_dir else None
    runs = [_for_seed(config, seed, directory) for seed in range(config.seed, config.seed + config.seeds)]
    for run in runs:
        check_config(run)
    if directory is not None and (directory / FILE_NAME).exists():
        raise UserError(f"output_dir: {directory} already holds the results of seeds: name another directory")
    results = [run_experiment(run, console) for run in runs]
    numbers = [summary_metrics(result) for result in results]
    names = dict.fromkeys(name for found in numbers for name in found)
    metrics = {name: aggregate([found[name] for found in numbers if name in found]) for name in names}
    whole = SeedsResult(metrics, results)
    if directory is not None:
        write_atomically(directory / FILE_NAME, whole.to_json() + "\n")
    return whole


def _for_seed(config: ExperimentConfig, seed: int, directory: Path | None) -> ExperimentConfig:
    run: Any = copy.deepcopy(config)
    run.seed, run.seeds = seed, 1
    if directory is not None:
        run.output_dir = str(directory / f"seed_{seed}")
    return run
