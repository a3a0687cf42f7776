"""How much each hyper-parameter matters, by the trials that ran to their end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from scipy.stats import spearmanr

from cl_ovq.sweeps.files import Sweep
from cl_ovq.sweeps.records import DONE, Record
from cl_ovq.sweeps.space import LISTS, Parameter

FEWEST = 4  # trials
FEW = 10  # trials for each key
ALIKE = 0.9  # rank correlation of two keys from which on they cannot be told apart


def importances(sweep: Sweep, records: Sequence[Record]) -> dict[str, float]:
    """Return the share of the first objective's variance that each key explains, the largest first.

    By functional analysis of variance over a random forest (Hutter, Hoos, Leyton-Brown 2014), as Optuna has it. Keys
    that do not count in every trial are left out; nothing is returned for too few trials or where all came out alike.
    """
    import optuna

    done, keys = _counted(sweep, records)
    values = [record.values[sweep.primary] for record in done]
    if len(done) < FEWEST or not keys or max(values) == min(values):
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for record, value in zip(done, values, strict=True):
        point = {p.key: _coded(p, record.point[p.key]) for p in keys}
        distributions = {p.key: _distribution(p) for p in keys}
        study.add_trial(optuna.trial.create_trial(params=point, distributions=distributions, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def doubts(sweep: Sweep, records: Sequence[Record]) -> list[str]:
    """Return in a line each what makes importances doubtful: few trials, and keys whose values came together."""
    done, keys = _counted(sweep, records)
    if len(done) < FEWEST:
        return [f"importance of keys: not told of fewer than {FEWEST} trials that ran to their end"]
    found = []
    if len(done) < FEW * len(keys):
        found.append(f"importance of keys: {len(done)} trials are few for {len(keys)} keys: take shares as rough")
    for a, b in combinations(keys, 2):
        if _alike([record.point[a.key] for record in done], [record.point[b.key] for record in done]):
            found.append(
                f"importance of keys: {a.key} and {b.key} changed together in these trials: what one is said to "
                "explain may be the other's"
            )
    return found


def _counted(sweep: Sweep, records: Sequence[Record]) -> tuple[list[Record], list[Parameter]]:
    """Return the trials that ran to their end, and the keys that count in all of them."""
    done = [record for record in records if record.status == DONE]
    return done, [p for p in sweep.space.parameters if all(p.key in record.point for record in done)]


def _alike(x: list[Any], y: list[Any]) -> bool:
    """Return whether two keys' values came together: one for one, or, if they are numbers, in the same order."""
    if len(set(map(repr, x))) == 1 or len(set(map(repr, y))) == 1:
        return False
    pairs = set(zip(map(repr, x), map(repr, y), strict=True))
    if len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) < len(x):
        return True
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (*x, *y))
    return numbers and abs(float(spearmanr(x, y).statistic)) >= ALIKE


def _coded(parameter: Parameter, value: object) -> object:
    """Return a value of a list as its place there: Optuna takes no lists for values."""
    return str(parameter.values.index(value)) if parameter.kind in LISTS else value


def _distribution(parameter: Parameter) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.kind in LISTS:
        return CategoricalDistribution([str(i) for i in range(len(parameter.values))])
    low, high = parameter.values
    if parameter.kind == "randint":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=parameter.kind == "loguniform")
