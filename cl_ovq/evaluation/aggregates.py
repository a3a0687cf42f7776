"""A metric over seeds: mean, spread and confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


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
