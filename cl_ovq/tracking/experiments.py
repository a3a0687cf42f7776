"""Experiments of a store, made where they are missing, and the runs in them, found by their keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cl_ovq.tracking.names import deleted
from cl_ovq.tracking.view import view_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_TAG = "cl_ovq.key"


class Gone(Exception):
    """What a run needs in MLflow was deleted; it may be restored."""


def open_experiment(client: MlflowClient, name: str, quantity: str, artifacts: str | None, uri: str) -> str:
    """Return the id of an experiment, which is made with its saved view if there is none of that name.

    Args:
        client: of the store.
        name: of the experiment.
        quantity: of its streams, for the view.
        artifacts: where files of the runs of a new one go; None where a tracking server decides.
        uri: of the store, for the message.

    Raises:
        Gone: it was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        raise Gone(deleted(found, uri))
    if found is not None:
        return str(found.experiment_id)
    experiment: str = client.create_experiment(name, artifact_location=artifacts)
    for tag, value in view_tags(quantity).items():
        client.set_experiment_tag(experiment, tag, value)
    return experiment


def find_run(client: MlflowClient, experiment: str, key: str) -> str | None:
    """Return the id of the run of an experiment that has a key; None if there is none."""
    found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return found[0].info.run_id if found else None
