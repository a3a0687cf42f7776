"""Reads what people name: a path that cannot be, or a file that is none, is told in one line."""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

from streams.errors import StreamDataError

PIECE = 1 << 22  # bytes that are read at once
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


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


def near(path: Path) -> str:
    """Returns the hint `: did you mean 'PATH'?` for a path that is not there, if something beside it is called so."""
    with suppress(OSError):
        close = difflib.get_close_matches(path.name, [found.name for found in path.absolute().parent.iterdir()], 1)
        if close:
            return f": did you mean '{path.parent / close[0]}'?"
    return ""


def kind_of(path: Path, option: str, kinds: Collection[str]) -> str:
    """Returns the suffix that says what a file is, in small letters, without that of a compression.

    Raises:
        StreamDataError: it is none of these kinds.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ""
    if kind not in kinds:
        raise StreamDataError(f"{option}: '{path}' has an unsupported format: supported: {', '.join(kinds)}")
    return kind


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
        hint = near(path) if error.errno == errno.ENOENT else ""
        raise StreamDataError(f"{path}: cannot be read ({error.strerror}){hint}") from error


def sha256_of(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """Returns the sha256 of a regular file, read in pieces.

    Args:
        path: the file.
        advance: called with the bytes of each piece.

    Raises:
        StreamDataError: it cannot be read, or is something else.
    """
    digest = hashlib.sha256()
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            while piece := file.read(PIECE):
                digest.update(piece)
                if advance is not None:
                    advance(len(piece))
    except OSError as error:
        raise StreamDataError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def states_of(paths: Iterable[Path]) -> list[tuple[str, int, int, int]]:
    """Returns what tells unchanged files from changed ones, without reading them: path, size and two times of each.

    Raises:
        StreamDataError: a file is not there.
    """
    found = []
    for path in paths:
        try:
            state = path.stat()
        except OSError as error:
            raise StreamDataError(f"{path}: cannot be read ({error.strerror})") from error
        found.append((str(path.absolute()), state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return found
