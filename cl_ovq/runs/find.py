"""Finds runs in MLflow's store."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cl_ovq.errors import unknown
from cl_ovq.paths import RESULTS, is_there
from cl_ovq.runs.result import Result

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LATEST = 3
MOST = 100  # runs that one name stands for: their ids are part of an address


def latest_runs(client: MlflowClient) -> list[Run]:
    """Return the latest few runs of the experiment that was used last, without those that only hold aggregates."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=50)
    if not found:
        return []
    last = found[0].info.experiment_id
    return [run for run in found if run.info.experiment_id == last and "seeds" not in run.data.tags][:LATEST]


def find_run(client: MlflowClient, name: str) -> Run:
    """Return a run by MLflow's id, its name (the latest of that name), or its directory.

    Raises:
        UserError: there is none.
    """
    from mlflow.exceptions import MlflowException

    results = Path(name) / RESULTS
    if is_there(results):
        name = Result.read(results).run_id or name
    with suppress(MlflowException):
        return client.get_run(name)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1000)
    for run in runs:
        if run.info.run_name == name:
            return run
    raise unknown("run", name, {run.info.run_name for run in runs})


def runs_of(client: MlflowClient, name: str) -> list[Run]:
    """Return the run of a name (see `find_run`), or the runs below it: the trials of a sweep, the seeds of several.

    Those that have finished, if any have; the latest ones where there are very many.

    Raises:
        UserError: there is no such run.
    """
    run = find_run(client, name)
    below = client.search_runs(
        [run.info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{run.info.run_id}'",
        order_by=["attributes.start_time DESC"],
        max_results=MOST,
    )
    return [child for child in below if child.info.status == "FINISHED"] or list(below) or [run]
