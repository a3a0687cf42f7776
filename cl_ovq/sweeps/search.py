"""Where the points of trials come from: a list, or Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray import tune
from ray.tune.search import Searcher

from cl_ovq.sweeps.files import Sweep
from cl_ovq.sweeps.records import DONE, STOPPED, Record

STUDY_FILE = "optuna.log"
NUMBER = "trial"  # attribute of an Optuna trial: the number under which its work is kept


class OptunaSearcher(Searcher):
    """Optuna's TPE over a conditional space, kept in a file, so that a sweep can go on where it was killed.

    Ray's own searcher would take a trial that was stopped early for a finished one, with the metric of few
    experiences, which is mostly a better one; here it counts as pruned. A trial that failed tells nothing.

    Args:
        sweep: the sweep.
        directory: of the sweep.
        records: of an earlier start; what had not ended is suggested again, under its number.
    """

    def __init__(self, sweep: Sweep, directory: Path, records: Mapping[int, Record]) -> None:
        super().__init__(metric="objective", mode=sweep.objectives[sweep.primary])
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.sweep = sweep
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(directory / STUDY_FILE))),
            study_name=sweep.name,
            directions=["maximize" if mode == "max" else "minimize" for mode in sweep.objectives.values()],
            sampler=optuna.samplers.TPESampler(
                # Optuna does not keep the state of its generator: another one for every start.
                seed=sweep.search.seed + len(records),
                n_startup_trials=sweep.search.startup,
                multivariate=True,
                group=True,
                constant_liar=True,  # other trials are running, and should not be repeated
                warn_independent_sampling=False,
            ),
            load_if_exists=True,
        )
        self._asked: dict[str, optuna.trial.Trial] = {}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            number = trial.user_attrs.get(NUMBER, trial.number)
            record = records.get(number)
            if record is not None and record.ended:  # the driver died between the record and Optuna's file
                self._tell(trial.number, record)
                continue
            self._study.tell(trial.number, state=TrialState.FAIL)
            if record is not None:
                self._study.enqueue_trial(trial.params, user_attrs={NUMBER: number})

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Return the next trial's number and point."""
        trial = self._study.ask()
        self._asked[trial_id] = trial
        number = trial.user_attrs.get(NUMBER, trial.number)
        return {"task": {"trial": number, "point": self.sweep.space.suggest(trial)}}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take in a report of a trial that goes on."""
        if len(self.sweep.objectives) == 1 and "objective" in result:
            self._asked[trial_id].report(result["objective"], result["experiences"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take in a trial's end; `result` has nested keys joined by slashes."""
        trial, values, state = self._asked.pop(trial_id), None, TrialState.FAIL
        status = None if error or not result else result.get("status")
        if result and status == DONE:
            state, values = TrialState.COMPLETE, [result[f"values/{metric}"] for metric in self.sweep.objectives]
        elif result and status == "running":  # stopped by the scheduler
            state = TrialState.PRUNED
        self._study.tell(trial, values, state=state)

    def _tell(self, number: int, record: Record) -> None:
        if record.status == DONE:
            self._study.tell(number, [record.values[metric] for metric in self.sweep.objectives])
        else:
            self._study.tell(number, state=TrialState.PRUNED if record.status == STOPPED else TrialState.FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing of importance: Optuna's own file has everything."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray keeps a copy that nobody reads


def left_over(sweep: Sweep, records: Mapping[int, Record]) -> list[dict[str, Any]]:
    """Return the tasks of a list of points that have not ended yet, with the points they have by now."""
    ended = {number for number, record in records.items() if record.ended}
    points = sweep.points()
    assert points is not None
    return [
        {"trial": number, "point": records[number].point if number in records else point}
        for number, point in enumerate(points)
        if number not in ended
    ]


def parameter_space(tasks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return Ray's description of a list of tasks."""
    return {"task": tune.grid_search(tasks)}
