"""Finds the checkpoint that a run goes on from, and makes sure that it is one of the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cl_ovq.checkpoints.files import NAME, read_checkpoint
from cl_ovq.config import ExperimentConfig, to_dict
from cl_ovq.config.load import decisive
from cl_ovq.errors import UserError


def find_checkpoint(folder: Path, config: ExperimentConfig) -> dict[str, Any] | None:
    """Return the checkpoint of a folder; None if it holds none.

    Raises:
        UserError: it is damaged, no checkpoint, or one of another configuration.
    """
    path = folder / NAME
    if not path.exists():
        return None
    run = read_checkpoint(path)
    if not isinstance(run, dict) or "about" not in run or "config" not in run["about"]:
        raise UserError(f"{path} is not the checkpoint of a run")
    check_same(path, run["about"]["config"], config)
    return run


def check_same(path: Path, kept: dict[str, Any], config: ExperimentConfig) -> None:
    """Make sure that a file belongs to a configuration.

    Args:
        path: the file, for the message.
        kept: the configuration that it was made with.
        config: the present one.

    Raises:
        UserError: they differ in what decides the result.
    """
    there, here = decisive(kept), decisive(to_dict(config))
    for key in dict.fromkeys((*here, *there)):
        if there.get(key) != here.get(key):
            raise UserError(
                f"{path} is of another configuration: {key} is {there.get(key)} there, and {here.get(key)} here"
            )
