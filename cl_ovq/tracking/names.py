"""What MLflow takes as a name, what it has deleted (both asked before a run begins), and what it refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cl_ovq.errors import UserError
from cl_ovq.uris import redact

if TYPE_CHECKING:
    from mlflow.entities import Experiment

RUN_NAME_LENGTH = 250  # of the column that MLflow's databases have for it
TAGS_KEY = "tracking.tags"
SAID = 3  # things that MLflow refused


def check_names(experiment: str, run_name: str, tags: Sequence[str]) -> None:
    """Check what a configuration calls its experiment, its run, and further tags.

    Raises:
        UserError: MLflow would refuse it.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils import validation

    if not run_name.strip() or len(run_name) > RUN_NAME_LENGTH:
        raise UserError(f"tracking.run_name: has {len(run_name)} characters: MLflow allows 1 to {RUN_NAME_LENGTH}")
    longest = validation.MAX_EXPERIMENT_NAME_LENGTH
    if not experiment.strip() or len(experiment) > longest:
        raise UserError(f"tracking.experiment: has {len(experiment)} characters: MLflow allows 1 to {longest}")
    longest = validation.MAX_ENTITY_KEY_LENGTH - len(f"{TAGS_KEY}.")  # a tag's key is part of a parameter's name, too
    for tag in tags:
        if len(tag) > longest:
            raise UserError(f"{TAGS_KEY}: '{tag[:20]}...' has {len(tag)} characters: MLflow allows at most {longest}")
        try:
            validation._validate_tag_name(tag)
            validation._validate_param_name(f"{TAGS_KEY}.{tag}")
        except MlflowException as error:
            raise UserError(
                f"{TAGS_KEY}: MLflow does not allow the tag '{tag}': use letters, digits, spaces and any of _ - . : "
                "/ but no '..', "
                "and no / at the end"
            ) from error


def deleted(found: Experiment, uri: str) -> str:
    """Say that an experiment was deleted, and what can be done."""
    return (
        f"the experiment '{found.name}' was deleted in MLflow: restore it with `MLFLOW_TRACKING_URI='{redact(uri)}' "
        f"mlflow experiments restore --experiment-id {found.experiment_id}`, or choose another "
        "(tracking.experiment=NAME)"
    )


def describe_refused(refused: Sequence[str]) -> str:
    """Say in one line what MLflow did not take."""
    more = f"; and {len(refused) - SAID} more" if len(refused) > SAID else ""
    return f"MLflow refused {len(refused)} of what was logged: {'; '.join(refused[:SAID])}{more}"
