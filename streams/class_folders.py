"""Samples that are files of their own, in folders that say their classes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from streams.errors import StreamDataError
from streams.files import named_path

PARTS = ("train", "test")  # folders that hold the training and the test samples, where there are just these two


@dataclass(frozen=True)
class SampleFile:
    """A sample on disk.

    Attributes:
        path: of the file.
        name: of the file in its data set, the same wherever that lies.
        label: its class.
        domain: its domain; None where there are none.
    """

    path: Path
    name: str
    label: str
    domain: str | None


def parts_of(data: str, test_data: str | None) -> list[tuple[str, Path]]:
    """Returns where training and test samples are, each with the option that says so.

    Args:
        data: folder or file; a folder whose folders are `train` and `test` has both.
        test_data: the same of the test samples; None where no other place is named.

    Raises:
        StreamDataError: one of them cannot be a path.
    """
    root = named_path(data, "data")
    if test_data is not None:
        return [("data", root), ("test_data", named_path(test_data, "test_data"))]
    if root.is_dir():
        folders = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
        if folders == set(PARTS):
            return [("data", root / name) for name in PARTS]
    return [("data", root)]


def files_by_class(root: Path, suffixes: Collection[str], option: str, what: str) -> list[SampleFile]:
    """Returns the files of a folder `class/file` or `domain/class/file`, by name.

    Args:
        root: the folder.
        suffixes: of the files, in small letters; others are passed over.
        option: that names the folder, for messages.
        what: the files are called in messages.

    Raises:
        StreamDataError: there are none, or they lie at different depths.
        OSError: a folder cannot be read.
    """
    names = sorted(_walk(root, root, suffixes))
    if not names:
        raise StreamDataError(f"{option}: '{root}' contains no {what} ({', '.join(sorted(suffixes))})")
    depths = {len(Path(name).parts): name for name in reversed(names)}
    if len(depths) > 1 or not depths.keys() <= {2, 3}:
        examples = " and ".join(f"'{depths[depth]}'" for depth in sorted(depths))
        raise StreamDataError(
            f"{option}: {what} of '{root}' must all be in class/ or all in domain/class/, but there is {examples}"
        )
    found = []
    for name in names:
        *domain, label, _ = Path(name).parts
        found.append(SampleFile(root / name, name, label, domain[0] if domain else None))
    return found


def _walk(folder: Path, root: Path, suffixes: Collection[str]) -> Iterator[str]:
    """Yields the names of all such files below a folder, relative to the root; what is hidden is passed over."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            if entry.is_dir():
                yield from _walk(path, root, suffixes)
            elif path.suffix.lower() in suffixes:
                yield path.relative_to(root).as_posix()
