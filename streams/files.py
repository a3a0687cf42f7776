"""Reads what people name: a path that cannot be, or a file that is none, is told in one line."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from streams.errors import StreamDataError


def named_path(path: str, option: str) -> Path:
    """Returns a path that an option names, with `~` and `~name` in front replaced.

    Raises:
        StreamDataError: nobody is called so, or no path can be.
    """
    try:
        found = Path(path).expanduser()
        found.exists()
    except (RuntimeError, ValueError, OSError) as error:
        raise StreamDataError(f"{option}: '{path}' cannot be a path: {error}") from error
    return found


def read_data(path: Path) -> bytes:
    """Returns the content of a regular file: anything else, like a pipe, might never end.

    Raises:
        StreamDataError: it cannot be read, or is something else.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            return file.read()
    except OSError as error:
        raise StreamDataError(f"{path}: cannot be read ({error.strerror})") from error
