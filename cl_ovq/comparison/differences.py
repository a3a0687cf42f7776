"""Whether runs differ: paired over seeds where seeds match, with intervals, tests and a correction for their number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from cl_ovq.evaluation.aggregates import Aggregate, aggregate
from cl_ovq.evaluation.metrics import intransigence, to_matrix
from cl_ovq.metric_names import BETTER, MATRIX_METRICS, QUANTITIES, better, own_metrics
from cl_ovq.runs.groups import Group
from cl_ovq.runs.result import summary_metrics
from cl_ovq.strategies import sees_all

if TYPE_CHECKING:
    from pandas import DataFrame

LEVEL = 0.05
# Beside the metrics of quality, which are tested. These are only shown.
SHOWN = (
    *(f"average_incremental_{quantity}" for quantity in QUANTITIES),
    *("dictionary/size", "dictionary/bytes", "wall_seconds", "peak_memory_bytes"),
)
TESTED = [metric for metric in BETTER if metric not in SHOWN and metric != "task_masked_accuracy"]


@dataclass(frozen=True)
class Difference:
    """A group's metric less the first group's.

    Attributes:
        metric: its name.
        group: position of the group.
        mean: of the metric over the group's seeds.
        difference: of the means, over the common seeds where it is paired.
        interval: half the width of the difference's 95 % confidence interval; None where there are too few seeds.
        p: two-sided p-value of no difference, as it stands; None where nothing was tested.
        corrected: the same, corrected by Holm's method for all tests of the comparison.
        paired: whether it is over common seeds (Student's paired test) or between unlike ones (Welch's).
        seeds: pairs of seeds, or the smaller number of seeds.
    """

    metric: str
    group: int
    mean: float
    difference: float
    interval: float | None
    p: float | None
    corrected: float | None
    paired: bool
    seeds: int

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `no difference shown`, or `not tested`."""
        if self.corrected is None:
            return "not tested"
        if self.corrected >= LEVEL:
            return "no difference shown"
        return "better" if self.difference * better(self.metric) > 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, and how each differs from the first.

    Attributes:
        groups: what is compared.
        aggregates: metric over seeds by name, one per group; None where it is undefined.
        differences: for every metric and every group but the first, where both have it.
    """

    groups: list[Group]
    aggregates: dict[str, list[Aggregate | None]]
    differences: list[Difference]

    @property
    def means(self) -> dict[str, list[float | None]]:
        """The metrics' means over seeds."""
        return {name: [found.mean if found else None for found in each] for name, each in self.aggregates.items()}

    def of(self, metric: str, group: int) -> Difference | None:
        """Return one difference, or None where there is none."""
        return next((d for d in self.differences if (d.metric, d.group) == (metric, group)), None)

    def best(self, metric: str) -> int | None:
        """Return the group with the best mean where the tests bear it out, else None.

        Any group but the first has to be shown to be better than the first; the first, that every other is worse.
        """
        found = enumerate(self.aggregates[metric])
        means = {group: better(metric) * each.mean for group, each in found if each is not None}
        best = max(means, key=means.__getitem__, default=0)
        if best > 0:
            return best if (tested := self.of(metric, best)) and tested.verdict == "better" else None
        others = [self.of(metric, group) for group in means if group > 0]
        return 0 if others and all(other and other.verdict == "worse" for other in others) else None

    def to_pandas(self) -> DataFrame:
        """Return a row per metric and group: its mean, and but for the first group how it differs from the first."""
        import pandas

        rows = []
        for metric, means in self.means.items():
            for number, (group, mean) in enumerate(zip(self.groups, means, strict=True)):
                found = self.of(metric, number)
                differs = {} if found is None else asdict(found) | {"verdict": found.verdict}
                rows.append(differs | {"metric": metric, "group": group.name, "mean": mean})
        columns = ["metric", "group", "mean", "difference", "interval", "p", "corrected", "verdict", "paired", "seeds"]
        return pandas.DataFrame(rows, columns=columns).set_index(["metric", "group"])


def compare(groups: Sequence[Group]) -> Comparison:
    """Compare every group with the first.

    Where one of them was trained jointly or cumulatively, the others' intransigence against it is compared too.

    Args:
        groups: at least two.
    """
    joint = (group for group in groups if group.sound and sees_all(group.config))
    reference = next(joint, None)
    values = [_values(group, reference) for group in groups]
    tests = [*TESTED, *MATRIX_METRICS]
    own = own_metrics(run.metrics for group in groups for run in group.sound.values())
    names = [*tests, *(name for name in own if name not in tests), *SHOWN]  # nobody says here which way is better
    aggregates = {}
    for name in names:
        found = [aggregate([*group[name].values()]) if name in group else None for group in values]
        if any(found):
            aggregates[name] = found
    raw: list[tuple[str, int, float, tuple[float, float | None, float | None, bool, int]]] = []
    for name in names:
        for position in range(1, len(groups)):
            ours, theirs = values[position].get(name), values[0].get(name)
            if ours and theirs:
                raw.append((name, position, float(np.mean(list(ours.values()))), _difference(ours, theirs)))
    tested = [found[2] for name, _, _, found in raw if name in tests and found[2] is not None]
    corrected = iter(holm(tested))
    differences = []
    for name, position, mean, (difference, interval, p, paired, seeds) in raw:
        p = p if name in tests else None
        adjusted = None if p is None else next(corrected)
        differences.append(Difference(name, position, mean, difference, interval, p, adjusted, paired, seeds))
    return Comparison(list(groups), aggregates, differences)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method (Holm 1979), in the order given."""
    order = np.argsort(p_values)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _values(group: Group, reference: Group | None) -> dict[str, dict[int, float]]:
    """Metrics of a group by name and seed, without runs that diverged.

    Intransigence is against the reference's run of that seed, or its first one.
    """
    found: dict[str, dict[int, float]] = {}
    for seed, run in group.sound.items():
        for name, value in summary_metrics(run).items():
            found.setdefault(name, {})[seed] = value
        if reference is not None and not sees_all(group.config):
            best = reference.sound.get(seed) or next(iter(reference.sound.values()))
            short = intransigence(to_matrix(run.matrix), to_matrix(best.matrix))
            if not math.isnan(short):
                found.setdefault("intransigence", {})[seed] = short
    return found


def _difference(
    ours: dict[int, float], theirs: dict[int, float]
) -> tuple[float, float | None, float | None, bool, int]:
    """Difference of means, half its 95 % interval, p-value, whether paired, and seeds."""
    common = sorted(ours.keys() & theirs.keys())
    if len(common) > 1 or (common and len(ours) == len(theirs) == 1):
        differences = np.array([ours[seed] - theirs[seed] for seed in common])
        mean = float(differences.mean())
        if len(common) == 1:
            return mean, None, None, True, 1
        error = float(differences.std(ddof=1)) / math.sqrt(len(common))
        if error == 0:  # the same difference in every seed: a run and itself, or two that differ by a constant
            return mean, 0.0, 1.0 if mean == 0 else 0.0, True, len(common)
        interval = float(stats.t.ppf(1 - LEVEL / 2, len(common) - 1)) * error
        return mean, interval, float(stats.ttest_1samp(differences, 0.0).pvalue), True, len(common)
    a, b = np.array(list(ours.values())), np.array(list(theirs.values()))
    mean, seeds = float(a.mean() - b.mean()), min(len(a), len(b))
    if seeds < 2 or a.var() + b.var() == 0:
        return mean, None, None, False, seeds
    found = stats.ttest_ind(a, b, equal_var=False)
    low, high = found.confidence_interval(1 - LEVEL)
    return mean, float(high - low) / 2, float(found.pvalue), False, seeds
