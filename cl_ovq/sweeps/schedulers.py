"""Which trials go on: Ray Tune's schedulers, with time counted in experiences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from cl_ovq.sweeps.files import Sweep
from cl_ovq.sweeps.records import Record

TIME, METRIC = "experiences", "objective"
NEVER = 10_000  # experiences: the end of a trial is its own affair


def make_scheduler(sweep: Sweep, records: Iterable[Record]) -> TrialScheduler:
    """Return the scheduler of a sweep.

    Args:
        sweep: the sweep.
        records: of trials that ended before this start, which successive halving compares the new ones with.
    """
    options, mode = sweep.scheduler, sweep.objectives[sweep.primary]
    if options.name == "asha":
        scheduler = AsyncHyperBandScheduler(
            time_attr=TIME,
            metric=METRIC,
            mode=mode,
            max_t=NEVER,
            grace_period=options.grace,
            reduction_factor=options.reduction,
        )
        sign = 1 if mode == "max" else -1
        for record in records:
            for experiences, value in record.history:
                earlier: Any = f"earlier {record.trial}"  # a bracket takes any name
                scheduler._brackets[0].on_result(earlier, experiences, sign * value)
        return scheduler
    if options.name == "pbt":
        return Population(sweep, mode)
    return FIFOScheduler()


class Population(PopulationBasedTraining):
    """Population-based training over a sweep's space.

    Args:
        sweep: the sweep.
        mode: of the first objective.
    """

    def __init__(self, sweep: Sweep, mode: str) -> None:
        generator = np.random.default_rng(sweep.search.seed)

        def explore(config: dict[str, Any]) -> dict[str, Any]:
            point = sweep.space.perturb(config["task"]["point"], sweep.scheduler.resample, generator)
            return {"task": {"trial": config["task"]["trial"], "point": point}}

        super().__init__(
            time_attr=TIME,
            metric=METRIC,
            mode=mode,
            perturbation_interval=sweep.scheduler.interval,
            burn_in_period=sweep.scheduler.grace,
            quantile_fraction=sweep.scheduler.quantile,
            custom_explore_fn=explore,
            log_config=False,
            require_attrs=False,
        )

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a changed copy of the other trial's configuration, under this trial's own number."""
        config, operations = super()._get_new_config(trial, trial_to_clone)
        own = trial.config["task"]["trial"]
        return config | {"task": config["task"] | {"trial": own}}, operations
