"""Files of a run's folder, which may have come from somebody else: regular ones inside it, and never what a link names.

A FIFO would be waited for, a device may do anything when it is opened, and a link leads out of the folder.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from cl_ovq.paths import RESULTS, write_atomically


class NotOwnFileError(Exception):
    """What a path leads to is no regular file of the run's folder; the message says in words what it is."""


def open_own(path: Path, *, write: bool = False) -> BinaryIO:
    """Open a regular file, without a buffer and without ever waiting.

    Args:
        path: of the file itself: the last step must be no link.
        write: whether it is to be written to as well, which a lock needs.

    Raises:
        NotOwnFileError: it is something else.
        OSError: it is not there, or cannot be opened.
    """
    _check_regular(os.lstat(path))
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotOwnFileError("a link") from error
        raise
    file = os.fdopen(descriptor, "r+b" if write else "rb", buffering=0)
    try:
        _check_regular(os.fstat(descriptor))
    except NotOwnFileError:
        file.close()
        raise
    return file


def own_path(folder: Path, name: str) -> Path:
    """Return the path of a file that a journal names, with all links resolved.

    Raises:
        NotOwnFileError: it is outside of the folder, no regular file, gone, or cannot be read.
    """
    try:
        path = (folder / name).resolve(strict=True)
        if not path.is_relative_to(folder.resolve(strict=True)):
            raise NotOwnFileError("outside of the run's folder")
        open_own(path).close()
    except FileNotFoundError as error:
        raise NotOwnFileError("gone") from error
    except (OSError, ValueError, RuntimeError) as error:  # also a name that no file can have, and links in a circle
        raise NotOwnFileError(f"not to be read: {getattr(error, 'strerror', None) or error}") from error
    return path


def _check_regular(found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    raise NotOwnFileError(kinds.get(stat.S_IFMT(found.st_mode), "a device"))


def note_run_id(directory: Path, run_id: str) -> None:
    """Enter the run's id into results that were written before it was known, if that is what lies there."""
    path = directory / RESULTS
    with suppress(NotOwnFileError, OSError, ValueError, RecursionError):
        with open_own(path) as file:
            result = json.load(file)
        if isinstance(result, dict) and "run_name" in result and result.get("run_id") is None:
            result["run_id"] = run_id
            write_atomically(path, json.dumps(result, indent=2) + "\n")
