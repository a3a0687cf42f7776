"""The sections of a sweep file: every field with its type, default, range and meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cl_ovq.config.protocols import MOST_SEEDS, PROTOCOLS
from cl_ovq.config.schema import option

SEARCHES = {
    "random": "draws, as many for every combination of the space's grids",
    "grid": "every combination of values",
    "tpe": "Optuna's tree-structured Parzen estimator, one objective",
    "pareto": "the same over several objectives at once",
}
SCHEDULERS = {
    "none": "every trial runs to its end",
    "asha": "trials that are behind after some experiences are stopped (asynchronous successive halving)",
    "pbt": "trials that are behind go on from a better one's checkpoint with changed hyper-parameters",
}
MODES = ("max", "min")
MOST_TRIALS = 100_000


@dataclass(frozen=True)
class SearchOptions:
    """How the space is searched."""

    name: str = option("random", "search algorithm", choices=tuple(SEARCHES))
    trials: int | None = option(None, "trials; needed by every search but grid", minimum=1, maximum=MOST_TRIALS)
    seed: int = option(0, "of the search's own randomness", minimum=0)
    startup: int = option(8, "trials drawn at random before Optuna's model is asked", minimum=1, maximum=MOST_TRIALS)


@dataclass(frozen=True)
class SchedulerOptions:
    """Which trials go on. Its time is counted in experiences, those of all seeds of a trial one after the other."""

    name: str = option("none", "scheduler", choices=tuple(SCHEDULERS))
    grace: int = option(
        1, "experiences before a trial may be stopped (asha) or changed (pbt)", minimum=1, maximum=10_000
    )
    reduction: int = option(2, "one trial in so many goes on at each rung (asha)", minimum=2, maximum=1000)
    interval: int = option(1, "experiences between two changes (pbt)", minimum=1, maximum=10_000)
    quantile: float = option(0.25, "share of trials that are replaced (pbt)", exclusive_minimum=0, maximum=0.5)
    resample: float = option(0.25, "share of changes that are new draws, not steps (pbt)", minimum=0, maximum=1)


@dataclass(frozen=True)
class SelectionOptions:
    """How the best configuration is chosen, and on what it is reported."""

    protocol: str = option("end_of_stream", "on validation data", choices=tuple(PROTOCOLS))
    experiences: int | None = option(None, "that are learned (first_k_experiences)", minimum=1)
    seeds: list[int] = option(  # noqa: RUF009 - option makes a field
        [100], "of every trial, one after the other; their mean counts", minimum=0
    )
    test_seeds: int = option(
        5, "of the chosen configuration on the test stream, from 0 on; 0 for none", minimum=0, maximum=MOST_SEEDS
    )


@dataclass(frozen=True)
class ResourceOptions:
    """What a trial takes."""

    cpus: float = option(1, "CPU cores, which are also PyTorch's threads", exclusive_minimum=0, maximum=1024)
    gpus: float = option(0, "GPUs; a fraction shares one among trials", minimum=0, maximum=1024)
    memory_gib: float | None = option(
        None, "memory that Ray sets aside, in GiB; none if null", exclusive_minimum=0, maximum=1_000_000
    )


@dataclass(frozen=True)
class BudgetOptions:
    """Where to stop."""

    minutes: float | None = option(None, "after which no trial goes on; none if null", exclusive_minimum=0)
    trial_minutes: float | None = option(
        None,
        "that a trial may run, all its seeds together; it is ended then, and counts as failed",
        exclusive_minimum=0,
    )
    target: float | None = option(None, "value of the first objective at which the sweep ends; none if null")
    concurrency: int | None = option(
        None, "trials at a time; as many as the resources allow if null", minimum=1, maximum=MOST_TRIALS
    )
    retries: int = option(3, "times that a trial goes on after its process or node has died", minimum=0, maximum=1000)


@dataclass(frozen=True)
class ClusterOptions:
    """Where the trials run."""

    address: str | None = option(None, "null: Ray is started here; `auto`, or an address: a cluster that runs already")
    cpus: int | None = option(None, "cores of a Ray started here; all if null", minimum=1, maximum=1024)
    storage: str | None = option(
        None, "where checkpoints go, as a path or URI that every node can reach; the sweep's directory if null"
    )
    ship_code: bool = option(True, "whether this very code is sent to the nodes of a cluster")


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
