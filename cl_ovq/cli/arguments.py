"""Arguments that several commands take."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from cl_ovq.errors import UserError
from cl_ovq.imports import import_parts
from cl_ovq.paths import expanded, is_folder, is_there
from cl_ovq.report.table import FILES

PICTURES = (".png", ".pdf", ".svg", ".eps", ".ps", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
FigureFormat = Annotated[
    Literal["png", "pdf", "svg"] | None, typer.Option("--format", help="Figure format (default: png).")
]
LONGEST = 255  # bytes of a name, on every file system in use

Config = Annotated[str, typer.Argument(help="YAML file, or name of an experiment.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print only the result, as one JSON object.")]
Jobs = Annotated[int, typer.Option(min=1, help="Number of parallel runs; more than one use separate processes.")]
AllowEnv = Annotated[
    bool,
    typer.Option("--allow-env", help="Allow ${oc.env:NAME} in values; it is stored unresolved."),
]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE_OR_FILE",
        help="Python module or file (./parts.py) that registers your own parts; its code is executed.",
        callback=lambda names: import_parts(names or ()),
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Overrides, e.g. model.mixer=softmax output_dir=DIR.", show_default=False
    ),
]


def writable_folder(path: Path | None) -> Path | None:
    """Make sure, before hours of work, that files can be written into a folder, which need not exist.

    Raises:
        UserError: something on its way is no folder, or not to be written to.
    """
    if path is None:
        return None
    path = expanded(path)
    if is_there(path) and not path.is_dir():
        raise UserError(f"{path} cannot be written: it is not a folder")
    _check_way(path, path.absolute())
    return path


def writable_file(path: Path | None) -> Path | None:
    """Make sure, before hours of work, that a file can be written, in a folder that need not exist.

    Raises:
        UserError: it is a folder, or see `writable_folder`.
    """
    if path is None:
        return None
    path = expanded(path)
    if is_folder(path):
        raise UserError(f"{path} cannot be written: it is a folder")
    _check_way(path, path.absolute().parent)
    return path


def picture_file(path: Path | None) -> Path | None:
    """Make sure, before any work, that a picture can be written to a file, whose ending says of which kind.

    Raises:
        UserError: there is no such kind, or see `writable_file`.
    """
    return _file_of_kind(path, "picture", PICTURES)


def _file_of_kind(path: Path | None, what: str, kinds: tuple[str, ...]) -> Path | None:
    if path is not None and path.suffix.lower() not in kinds:
        given = f"the extension '{path.suffix}'" if path.suffix else "no extension"
        raise UserError(f"output: {path} has {given}, which is not a {what} format: known: {', '.join(kinds)}")
    return writable_file(path)


TableFile = Annotated[
    Path | None,
    typer.Option(
        help="Output file for the table: .tex (LaTeX), .csv, .md or .html.",
        callback=lambda path: _file_of_kind(path, "table", FILES),
    ),
]


def _check_way(path: Path, folder: Path) -> None:
    names = [name.encode(errors="surrogateescape") for name in path.absolute().parts]
    if any(len(name) > LONGEST or b"\0" in name for name in names):
        raise UserError(f"{path} cannot be written: invalid file name")
    there = next(way for way in (folder, *folder.parents) if is_there(way))
    if not there.is_dir():
        raise UserError(f"{path} cannot be written: {there} is not a writable folder")
    try:
        with tempfile.TemporaryFile(dir=there):  # permissions say too little: of /proc, say, or a disk that is full
            pass
    except OSError as error:
        raise UserError(f"{path} cannot be written: {there} is not a writable folder: {error.strerror}") from error
