"""Paths that people name, and names of files and folders made of words. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from cl_ovq.errors import UnwrittenError, UserError

FIGURE_FORMATS = ("png", "pdf", "svg")
RESULTS = "results.json"  # of a run
NAME_BYTES = 120  # far below what file systems take, since moments and numbers are appended


def safe_name(text: str) -> str:
    """Return the name of a file or folder for a text: one step of a path, never hidden, and short.

    Letters and digits of any language, `_`, `-` and `.` stand for themselves, anything else is `-`. A text that is too
    long ends in a digest of all of it, so that two of them do not become one.
    """
    name = re.sub(r"[^\w.-]+", "-", text).strip("-.") or "unnamed"
    if len(name.encode()) <= NAME_BYTES:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name.encode()[: NAME_BYTES - 9].decode(errors='ignore')}-{digest}"


def expanded(path: str | Path) -> Path:
    """Return a path with `~` and `~name` in front replaced by that home directory.

    Raises:
        UserError: nobody is called so.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such home directory") from error


def is_there(path: Path) -> bool:
    """Return whether there is such a path; False for one that cannot be."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Return whether there is such a file; False for a name that no file can have."""
    return is_there(path) and path.is_file()


def is_folder(path: Path) -> bool:
    """Return whether there is such a folder; False for a name that no folder can have."""
    return is_there(path) and path.is_dir()


def read_regular(path: Path, largest: int | None = None) -> bytes:
    """Return the content of a regular file: anything else, like a pipe, might never end.

    Args:
        path: of the file.
        largest: bytes that it may have; any number if None.

    Raises:
        OSError: it cannot be read, is something else, or is larger.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if largest is not None and found.st_size > largest:
            raise OSError(errno.EFBIG, f"it has more than {largest:,} bytes", str(path))
        return file.read()


def replace_file(path: Path, parts: Iterable[bytes], *, durable: bool = False) -> None:
    """Write a file whole or not at all: a reader finds the old content or the new, and a failure leaves nothing behind.

    Args:
        path: of the file.
        parts: its content.
        durable: whether it is to be on the disk, and not only with the system, before the old one goes.

    Raises:
        OSError: it cannot be written; an old one stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:  # a new one: whoever put a link there is not followed
            file.writelines(parts)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def make_folder(path: Path, key: str) -> Path:
    """Make a folder, and those to it, where it is missing.

    Args:
        path: of the folder.
        key: what named it, for the message.

    Raises:
        UserError: it cannot be made, or nothing can be written into it.
    """
    for attempt in range(100):
        doing = "make"
        try:
            path.mkdir(parents=True, exist_ok=True)
            doing = "write into"
            tempfile.TemporaryFile(dir=path).close()  # what permissions say is not all: of file systems, of root
            break
        except OSError as error:
            # Whoever shares an empty folder may remove it and make it again at any moment: what it is now says nothing.
            if attempt == 99 or not isinstance(error, FileNotFoundError | FileExistsError):
                raise UserError(f"{key}: cannot {doing} the directory {path}: {error.strerror}") from error
            time.sleep(0.001)
    return path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file, and the folders to it, so that a reader finds the old content or the new, never a part.

    Raises:
        UnwrittenError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, [content.encode() if isinstance(content, str) else content])
    except OSError as error:
        raise UnwrittenError(f"{path} cannot be written: {error.strerror}") from error
