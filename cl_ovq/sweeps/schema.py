"""The sections of a sweep file: every field with its type, default, range and meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cl_ovq.config.protocols import MOST_SEEDS, PROTOCOLS
from cl_ovq.config.schema import option

SEARCHES = {
    "random": "random draws, the same number for every combination of grid values",
    "grid": "every combination of values",
    "tpe": "Optuna's tree-structured Parzen estimator, one objective",
    "pareto": "the same for several objectives",
}
SCHEDULERS = {
    "none": "every trial runs to its end",
    "asha": "stops weak trials early (asynchronous successive halving)",
    "pbt": "weak trials continue from a better trial's checkpoint with perturbed hyperparameters",
}
MODES = ("max", "min")
MOST_TRIALS = 100_000


@dataclass(frozen=True)
class SearchOptions:
    """How the space is searched."""

    name: str = option("random", "search algorithm", choices=tuple(SEARCHES))
    trials: int | None = option(None, "number of trials; required except for grid", minimum=1, maximum=MOST_TRIALS)
    seed: int = option(0, "random seed of the search", minimum=0)
    startup: int = option(8, "random trials before Optuna's model takes over", minimum=1, maximum=MOST_TRIALS)


@dataclass(frozen=True)
class SchedulerOptions:
    """Which trials go on. Its time is counted in experiences, those of all seeds of a trial one after the other."""

    name: str = option("none", "scheduler", choices=tuple(SCHEDULERS))
    grace: int = option(
        1, "experiences before a trial may be stopped (asha) or changed (pbt)", minimum=1, maximum=10_000
    )
    reduction: int = option(2, "one in this many trials continues at each rung (asha)", minimum=2, maximum=1000)
    interval: int = option(1, "experiences between two perturbations (pbt)", minimum=1, maximum=10_000)
    quantile: float = option(0.25, "fraction of trials that are replaced (pbt)", exclusive_minimum=0, maximum=0.5)
    resample: float = option(0.25, "probability of a new draw instead of a perturbation (pbt)", minimum=0, maximum=1)


@dataclass(frozen=True)
class SelectionOptions:
    """How the best configuration is chosen, and on what it is reported."""

    protocol: str = option("end_of_stream", "selection protocol on validation data", choices=tuple(PROTOCOLS))
    experiences: int | None = option(None, "number of experiences to learn (first_k_experiences)", minimum=1)
    seeds: list[int] = option(  # noqa: RUF009 - option makes a field
        [100], "seeds of every trial, run one after another and averaged", minimum=0
    )
    test_seeds: int = option(
        5,
        "number of test seeds of the selected configuration, starting at 0; 0 for none",
        minimum=0,
        maximum=MOST_SEEDS,
    )


@dataclass(frozen=True)
class ResourceOptions:
    """What a trial takes."""

    cpus: float = option(
        1, "CPU cores per trial, also the number of PyTorch threads", exclusive_minimum=0, maximum=1024
    )
    gpus: float = option(0, "GPUs per trial; a fraction shares one GPU among trials", minimum=0, maximum=1024)
    memory_gib: float | None = option(
        None, "memory that Ray reserves per trial, in GiB; none if null", exclusive_minimum=0, maximum=1_000_000
    )


@dataclass(frozen=True)
class BudgetOptions:
    """Where to stop."""

    minutes: float | None = option(None, "time limit of the sweep, in minutes; none if null", exclusive_minimum=0)
    trial_minutes: float | None = option(
        None,
        "time limit of a trial with all its seeds, in minutes; the trial then counts as failed",
        exclusive_minimum=0,
    )
    target: float | None = option(None, "the sweep ends when the first objective reaches this value; none if null")
    concurrency: int | None = option(
        None, "number of concurrent trials; limited only by resources if null", minimum=1, maximum=MOST_TRIALS
    )
    retries: int = option(3, "how often a trial is continued after its process or node died", minimum=0, maximum=1000)


@dataclass(frozen=True)
class ClusterOptions:
    """Where the trials run."""

    address: str | None = option(None, "null: start Ray on this machine; `auto` or an address: use a running cluster")
    cpus: int | None = option(None, "CPU cores for a Ray started on this machine; all if null", minimum=1, maximum=1024)
    storage: str | None = option(
        None, "path or URI for checkpoints that every node can reach; the sweep's directory if null"
    )
    ship_code: bool = option(True, "ship this checkout to the nodes of a cluster")


@dataclass(frozen=True)
class TopKeys:
    """What a sweep file holds beside its sections.

    Attributes:
        title: in words; the file's name if None.
        experiment: name or path.
        set: laid over the experiment in every trial.
        space: values to try by key, see `space.py`.
        objectives: `max` or `min` by metric.
        compare: keys; the best trial of every combination of their values is shown.
        reuse: folder in which runs that are done already are looked for.
    """

    title: str | None = None
    experiment: str | None = None
    set: dict[str, Any] | None = None
    space: dict[str, Any] | None = None
    objectives: dict[str, str] | None = None
    compare: list[str] | None = None
    reuse: str | None = None


SECTIONS: dict[str, Any] = {
    "search": SearchOptions,
    "scheduler": SchedulerOptions,
    "selection": SelectionOptions,
    "resources": ResourceOptions,
    "budget": BudgetOptions,
    "cluster": ClusterOptions,
}
