"""Finds the checkpoint that a run goes on from, and makes sure that it is one of the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from cl_ovq.config import ExperimentConfig, to_dict
from cl_ovq.config.identity import differences, identity
from cl_ovq.errors import UserError
from cl_ovq.runs.checkpoints.files import NAME
from cl_ovq.runs.checkpoints.history import History
from cl_ovq.runs.checkpoints.schema import VERSION, read_run


class Begun(NamedTuple):
    """A run to go on with."""

    run: dict[str, Any]
    history: History


def find_checkpoint(folder: Path, config: ExperimentConfig) -> Begun | None:
    """Return the checkpoint of a folder; None if it holds none.

    Raises:
        UserError: it is damaged, no checkpoint, or one of another configuration or version.
    """
    path = folder / NAME
    if not path.exists():
        return None
    run = read_run(path)
    if run.get("version") != VERSION:
        raise UserError(
            f"{path} was written by another version of this program; only its model can be read (cl-ovq evaluate): "
            "resume with that version, or start over with --overwrite"
        )
    check_same(path, run["about"]["config"], config)
    return Begun(run, History.read(folder, **run["history"]))


def check_same(path: Path, kept: dict[str, Any], config: ExperimentConfig) -> None:
    """Make sure that a file belongs to a configuration.

    Args:
        path: the file, for the message.
        kept: the configuration that it was made with.
        config: the present one.

    Raises:
        UserError: they differ in what decides training.
    """
    differing = differences(identity(to_dict(config)).training, identity(kept).training)
    for key, (here, there) in differing.items():
        raise UserError(f"{path} has a different configuration: {key} is {there} in the checkpoint, but {here} now")
