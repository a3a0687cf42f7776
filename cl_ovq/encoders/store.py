"""Features that are computed once, into a file that all runs map into memory.

An entry is a folder named by the digest of what decides its features. It is made in a folder beside its place, which is
renamed when it is complete. What was computed is written down every few seconds, with a record of how far it goes:
whoever comes after a process that was killed goes on from there. A lock lets one process compute while others wait;
where a file system has no locks several compute, each in a folder of its own, and the first one's features stay.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cl_ovq.errors import UserError
from streams.cache import alone, mapped, write_text
from streams.files import PIECE

FEATURES, FACTS, PROGRESS = "features", "facts.json", "progress.json"
EVERY_SECONDS = 5.0  # between two records of how far it goes

# Computes the features `[b, F]` of samples from a row on, batch after batch.
Encode = Callable[[int], Iterator[np.ndarray]]


class Features(NamedTuple):
    """Features of all samples.

    Attributes:
        values: `[n, F]`, float16 or float32; in memory or mapped.
        sha256: their checksum.
    """

    values: np.ndarray
    sha256: str


def stored(root: Path, name: str, rows: int, encode: Encode, about: dict[str, Any]) -> Features:
    """Return the features of an entry, which are computed if they are not there.

    Args:
        root: folder of all entries.
        name: of the entry: decides what its features are.
        rows: samples.
        encode: computes features.
        about: what the entry says of itself to a reader.

    Raises:
        UserError: the folder cannot be written, or what `encode` raises.
    """
    place = root / name
    if (found := _open(place, rows)) is not None:
        return found
    try:
        root.mkdir(parents=True, exist_ok=True)
        with alone(root / f"{name}.lock", "waiting for another process that computes the same features") as held:
            if (found := _open(place, rows)) is not None:
                return found
            if held:
                for left in (place, *root.glob(f"{name}.*.part")):  # not whole, or a killed process's own
                    shutil.rmtree(left, ignore_errors=True)
                part = root / f"{name}.part"
                part.mkdir(exist_ok=True)
            else:
                part = Path(tempfile.mkdtemp(prefix=f"{name}.", suffix=".part", dir=root))
            _compute(part, rows, encode, about)
            try:
                part.rename(place)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another one's, where there are no locks
                    raise
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"encoder.cache_dir: cannot write to {root}: {error.strerror}: set another folder, or encoder.cache=false "
            "to compute the features for every run"
        ) from error
    made = _open(place, rows)
    if made is None:
        raise UserError(f"encoder.cache_dir: what was written to {place} cannot be read back")
    return made


def in_memory(encode: Encode) -> Features:
    """Return features that are computed now and not kept."""
    values = np.concatenate(list(encode(0)))
    return Features(values, hashlib.sha256(values.data).hexdigest())


def _compute(part: Path, rows: int, encode: Encode, about: dict[str, Any]) -> None:
    """Make an entry in the folder `part`, going on with what is there."""
    done, width, dtype = _progress(part)
    path = part / FEATURES
    with open(path, "r+b" if done else "wb") as file:
        digest = hashlib.sha256()
        if done:
            file.truncate(done * width * dtype.itemsize)
            while piece := file.read(PIECE):
                digest.update(piece)
        written = time.monotonic()
        for batch in encode(done) if done < rows else ():
            if not done:
                width, dtype = batch.shape[1], batch.dtype
                _check_room(part, rows * width * dtype.itemsize)
            data = np.ascontiguousarray(batch).data
            file.write(data)
            digest.update(data)
            done += len(batch)
            if time.monotonic() - written > EVERY_SECONDS or done == rows:
                file.flush()
                os.fsync(file.fileno())
                write_text(part / PROGRESS, json.dumps({"rows": done, "width": width, "dtype": dtype.name}))
                written = time.monotonic()
    facts = {"shape": [rows, width], "dtype": dtype.name, "sha256": digest.hexdigest()}
    write_text(part / FACTS, json.dumps(facts | {"about": about}, indent=2))
    os.chmod(part, 0o755)  # a cache may be shared


def _progress(part: Path) -> tuple[int, int, np.dtype[Any]]:
    """Return how many rows of a folder are sure to be right, and of what width and type."""
    try:
        facts = json.loads((part / PROGRESS).read_text())
        done, width, dtype = int(facts["rows"]), int(facts["width"]), np.dtype(facts["dtype"])
        if done > 0 and (part / FEATURES).stat().st_size >= done * width * dtype.itemsize:
            return done, width, dtype
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, 0, np.dtype(np.float32)


def _open(place: Path, rows: int) -> Features | None:
    """Return the features of an entry; None if there is none, or it is not whole."""
    try:
        facts = json.loads((place / FACTS).read_text())
        shape, dtype = tuple(facts["shape"]), np.dtype(facts["dtype"])
        size = (place / FEATURES).stat().st_size
        if shape[0] != rows or size != math.prod(shape) * dtype.itemsize:
            return None
        return Features(mapped(place / FEATURES, dtype, shape), str(facts["sha256"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_room(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise UserError(
            f"encoder.cache_dir: {folder.parent} has {free / 1e9:.1f} GB left, but the features need "
            f"{nbytes / 1e9:.1f} GB: set another folder, or encoder.cache=false to keep them in memory"
        )
