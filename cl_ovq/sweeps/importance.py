"""How much each hyper-parameter matters, by the trials that ran to their end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cl_ovq.sweeps.files import Sweep
from cl_ovq.sweeps.records import DONE, Record
from cl_ovq.sweeps.space import LISTS, Parameter

FEWEST = 4  # trials


def importances(sweep: Sweep, records: Sequence[Record]) -> dict[str, float]:
    """Return the share of the first objective's variance that each key explains, the largest first.

    By functional analysis of variance over a random forest (Hutter, Hoos, Leyton-Brown 2014), as Optuna has it. Keys
    that do not count in every trial are left out; nothing is returned for too few trials or where all came out alike.
    """
    import optuna

    done = [record for record in records if record.status == DONE]
    keys = [p for p in sweep.space.parameters if all(p.key in record.point for record in done)]
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
