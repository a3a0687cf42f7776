"""Arguments that several commands take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cl_ovq.errors import UserError

Config = Annotated[str, typer.Argument(help="A YAML file, or the name of one under experiments/.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Changes, e.g. model.mixer=softmax output_dir=DIR.", show_default=False
    ),
]


def writable_folder(path: Path | None) -> Path | None:
    """Make sure, before hours of work, that files can be written into a folder, which need not exist.

    Raises:
        UserError: something on its way is no folder, or not to be written to.
    """
    if path is not None:
        _check_way(path, path.absolute())
    return path


def writable_file(path: Path | None) -> Path | None:
    """Make sure, before hours of work, that a file can be written, in a folder that need not exist.

    Raises:
        UserError: it is a folder, or see `writable_folder`.
    """
    if path is not None:
        if path.is_dir():
            raise UserError(f"{path} cannot be written: it is a folder")
        _check_way(path, path.absolute().parent)
    return path


def _check_way(path: Path, folder: Path) -> None:
    there = next(way for way in (folder, *folder.parents) if way.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"{path} cannot be written: {there} is not a folder that files can be put into")
