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


def read_data(path: Path, largest: int | None = None) -> bytes:
    """Returns the content of a regular file: anything else, like a pipe, might never end.

    Args:
        path: of the file.
        largest: bytes that it may have; any number if None.

    Raises:
        StreamDataError: it cannot be read, is something else, or is larger.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            if largest is not None and found.st_size > largest:
                raise OSError(errno.EFBIG, f"it has more than {largest:,} bytes")
            return file.read()
    except OSError as error:
        raise StreamDataError(f"{path}: cannot be read ({error.strerror})") from error
