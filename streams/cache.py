"""Samples that are decoded once, into a file that is mapped into memory and shared by all who read it.

An entry is a folder named by the digest of what it was made of. It is made beside its place and renamed into it when it
is complete, so that a writer that is killed leaves no entry; what it left is removed by the next one. A lock lets one
process make an entry while others wait for it; where a file system has no locks several make it, and the first one's
stays. An entry whose files do not have the size that it says is made anew.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from streams.errors import StreamDataError
from streams.files import named_path
from streams.progress import progress
from streams.split import LabelledData

FORMAT = 2  # goes into the digests: to be raised where the same files would give other samples than before
INPUTS, FACTS = "inputs", "facts.json"
TARGETS, DOMAINS, OFFSETS = "targets.npy", "domains.npy", "offsets.npy"
PLAIN = ("dataset", "source", "files", "divisor", "class_names", "n_test", "domain_names")


class Sink:
    """Takes the samples of a data set, chunk after chunk, and tells their checksum.

    Args:
        file: where they go.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.shape: tuple[int, ...] = (0,)
        self.dtype = np.dtype(np.uint8)

    def write(self, chunk: np.ndarray) -> None:
        """Appends samples `[b, ...]`, of one shape and type for all chunks.

        Raises:
            StreamDataError: they have another shape than those before, or there is no room.
        """
        data = np.ascontiguousarray(chunk)
        if self.shape[0] and data.shape[1:] != self.shape[1:]:
            raise StreamDataError(
                f"samples differ in shape: one is {list(data.shape[1:])}, others are {list(self.shape[1:])}"
            )
        self.shape, self.dtype = (self.shape[0] + len(data), *data.shape[1:]), data.dtype
        self._digest.update(data.data)
        try:
            self._file.write(data.data)
        except OSError as error:
            raise _unwritable(Path(getattr(self._file, "name", ".")).parent, error) from error

    @property
    def sha256(self) -> str:
        """The checksum of all samples so far."""
        return self._digest.hexdigest()


# Writes all samples, and returns the data set that they are; its `inputs` are not looked at.
Make = Callable[[Sink], LabelledData]


def digest_of(*facts: Any) -> str:
    """Returns the name of an entry that is made of these facts, which JSON can hold."""
    return hashlib.sha256(json.dumps([FORMAT, *facts]).encode()).hexdigest()[:40]


def cache_root(cache_dir: str | None) -> Path:
    """Returns the folder of the cache: the named one, or the user's.

    Raises:
        StreamDataError: it cannot be a path.
    """
    if cache_dir is not None:
        return named_path(cache_dir, "cache_dir")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cl-ovq", "data")


def in_memory(make: Make) -> LabelledData:
    """Returns a data set whose samples are made into memory."""
    buffer = io.BytesIO()
    sink = Sink(buffer)
    data = make(sink)
    return dataclasses.replace(data, inputs=np.frombuffer(buffer.getbuffer(), dtype=sink.dtype).reshape(sink.shape))


def cached(name: str, root: Path, make: Make, *, nbytes: int | None = None) -> LabelledData:
    """Returns a data set whose samples lie in a mapped file, which is made if it is not there.

    Args:
        name: of the entry, see `digest_of`.
        root: folder of the cache, see `cache_root`.
        make: writes its samples.
        nbytes: of all samples, where that is known beforehand.

    Raises:
        StreamDataError: the cache cannot be written, or what `make` raises.
    """
    place = root / name
    if (data := _open(place)) is not None:
        return data
    try:
        root.mkdir(parents=True, exist_ok=True)
        with alone(root / f"{name}.lock", "waiting for another process that reads the same data") as held:
            if (data := _open(place)) is not None:  # another process has made it meanwhile
                return data
            if held:
                for left in (place, *root.glob(f"{name}.*.part")):
                    shutil.rmtree(left, ignore_errors=True)
            if nbytes is not None and (free := shutil.disk_usage(root).free) < nbytes:
                raise StreamDataError(
                    f"cache_dir: {root} has {free / 1e9:.1f} GB left, but the samples need {nbytes / 1e9:.1f} GB: set "
                    "another folder, or cache=false to keep them in memory"
                )
            _make(place, Path(tempfile.mkdtemp(prefix=f"{name}.", suffix=".part", dir=root)), make)
    except OSError as error:
        raise _unwritable(root, error) from error
    made = _open(place)
    if made is None:
        raise StreamDataError(f"cache_dir: what was written to {place} cannot be read back")
    return made


def remembered(name: str, root: Path | None, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns facts that take long to find, and remembers them in the cache where there is one.

    Args:
        name: of the entry, see `digest_of`.
        root: folder of the cache; None for none.
        find: finds the facts, which JSON can hold.
    """
    if root is None:
        return find()
    path = root / f"{name}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except (OSError, ValueError):
        pass
    facts = find()
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(facts))
    except OSError as error:
        raise _unwritable(root, error) from error
    return facts


def mapped(path: Path, dtype: np.dtype[Any], shape: Sequence[int], offset: int = 0) -> np.ndarray:
    """Returns the content of a file as an array that is read only where it is looked at.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is smaller than the array.
    """
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=tuple(shape))


def _make(place: Path, part: Path, make: Make) -> None:
    """Makes an entry in the folder `part`, and renames that to `place`; removes it where that fails."""
    try:
        with open(part / INPUTS, "wb") as file:
            sink = Sink(file)
            data = make(sink)
            file.flush()
            os.fsync(file.fileno())
        np.save(part / TARGETS, data.targets)
        if data.domains is not None:
            np.save(part / DOMAINS, data.domains)
        if data.offsets is not None:
            np.save(part / OFFSETS, data.offsets)
        facts = {key: getattr(data, key) for key in PLAIN}
        write_text(part / FACTS, json.dumps({**facts, "shape": sink.shape, "dtype": sink.dtype.name}))
        os.chmod(part, 0o755)  # a cache may be shared
        try:
            part.rename(place)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another writer's, where there are no locks
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _open(place: Path) -> LabelledData | None:
    """Returns the data set of an entry; None if there is none, or it is not whole."""
    try:
        facts = json.loads((place / FACTS).read_text())
        shape, dtype = tuple(facts.pop("shape")), np.dtype(facts.pop("dtype"))
        if (place / INPUTS).stat().st_size != math.prod(shape) * dtype.itemsize:
            return None
        targets = np.load(place / TARGETS)
        domains = np.load(place / DOMAINS) if facts["domain_names"] else None
        offsets = np.load(place / OFFSETS) if (place / OFFSETS).is_file() else None
        rows = shape[0] if offsets is None else len(offsets) - 1
        if len(targets) != rows or (domains is not None and len(domains) != rows):
            return None
        facts |= {key: tuple(facts[key]) for key in ("class_names", "domain_names")}
        inputs = mapped(place / INPUTS, dtype, shape)
        return LabelledData(**facts, inputs=inputs, targets=targets, domains=domains, offsets=offsets)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def alone(path: Path, waiting: str) -> Iterator[bool]:
    """Holds a lock for as long as the `with` block, after waiting for it; yields False where there are no locks.

    Args:
        path: of the lock's file.
        waiting: what is shown while another process holds it.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            with progress(waiting):
                fcntl.flock(file, fcntl.LOCK_EX)
            held = True
        except OSError:
            held = False
        yield held


def write_text(path: Path, text: str) -> None:
    """Writes a small file so that it is there whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def _unwritable(folder: Path, error: OSError) -> StreamDataError:
    return StreamDataError(
        f"cache_dir: cannot write to {folder}: {error.strerror}: set another folder, or cache=false to keep the "
        "samples in memory"
    )
