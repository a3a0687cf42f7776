"""Reads feature vectors with labels and domains from files, in batches: .npy, .npz, CSV and Parquet."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streams.errors import StreamDataError
from streams.files import kind_of, named_path, read_data

BATCH = 16_384  # samples that are read at once
# What columns and arrays are called where their names are not given, the first that is there.
LABELS = ("label", "labels", "target", "targets", "class", "classes", "y")
DOMAINS = ("domain", "domains")
FEATURES = ("features", "embeddings", "x", "X", "inputs", "data")


@dataclass(frozen=True)
class FeatureFile:
    """A file of feature vectors, and where its labels and domains are.

    Attributes:
        option: that names the file, for messages.
        path: the file.
        labels: column, array or file of the labels; None to look for one of `LABELS`.
        domains: column, array or file of the domains; None to look for one of `DOMAINS`.
        columns: of a table that are features, or the array's name; None for all others, or one of `FEATURES`.
    """

    option: str
    path: Path
    labels: str | None
    domains: str | None
    columns: tuple[str, ...] | None


@dataclass(frozen=True)
class Batch:
    """Some samples of a file: vectors `[b, F]`, labels `[b]`; domains `[b]` and names of the features or None."""

    vectors: np.ndarray
    labels: Any
    domains: Any
    names: Sequence[str] | None = None


Reader = Callable[[FeatureFile], Iterator[Batch]]


def read_batches(file: FeatureFile) -> Iterator[Batch]:
    """Yields the samples of a file in their order, as finite float32.

    Raises:
        StreamDataError: naming file, column and row of what cannot be read.
    """
    first = 0
    for batch in READERS[kind_of(file.path, file.option, READERS)](file):
        yield Batch(finite(batch.vectors, file.path, first, batch.names), batch.labels, batch.domains)
        first += len(batch.vectors)


def finite(vectors: np.ndarray, path: Path | str, first: int, names: Sequence[str] | None = None) -> np.ndarray:
    """Returns vectors as they are stored, float32 or float16.

    Args:
        vectors: `[b, F]`, numbers of any type.
        path: of the file, for messages.
        first: number of the first row in the file, for messages.
        names: of the features, for messages.

    Raises:
        StreamDataError: they are no numbers, or one is not finite.
    """
    if vectors.dtype.kind not in "fiub":
        raise StreamDataError(f"{path}: the features are {vectors.dtype}, not numbers")
    with np.errstate(over="ignore", invalid="ignore"):  # whatever is not finite is told below
        found = vectors if vectors.dtype == np.float16 else vectors.astype(np.float32, copy=False)
        total = found.sum(dtype=np.float64)
    # A sum is finite where all its terms are, and takes a pass less; one that overflows is looked at again.
    if not np.isfinite(total) and not (sound := np.isfinite(found)).all():
        row, column = (int(index) for index in np.argwhere(~sound)[0])
        name = f"column '{names[column]}'" if names and len(names) == found.shape[1] else f"feature {column + 1}"
        value = vectors[row, column]
        needed = "finite in single precision" if np.isfinite(value) else "finite"
        raise StreamDataError(f"{path}: {name} of row {first + row + 1} is {value}, but must be {needed}")
    return found


def load_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Returns the array of a .npy file.

    Raises:
        StreamDataError: it cannot be read.
    """
    try:
        found = np.load(path, mmap_mode="r" if mapped else None)
    except (OSError, ValueError, EOFError) as error:
        raise StreamDataError(f"{path}: cannot be read as .npy: {_reason(error)}") from error
    if not isinstance(found, np.ndarray):
        raise StreamDataError(f"{path}: is not a .npy file")
    return found


def check_vectors(vectors: np.ndarray, where: str) -> None:
    """Refuses an array that is not `[n, F]`.

    Raises:
        StreamDataError: saying its shape.
    """
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise StreamDataError(f"{where}: has shape {list(vectors.shape)}, but must be [samples, features]")


def column_of(path: str, option: str) -> np.ndarray:
    """Returns the labels or domains of a file of their own: .npy, or text with one a line.

    Raises:
        StreamDataError: it cannot be read.
    """
    file = named_path(path, option)
    if file.suffix.lower() == ".npy":
        return load_array(file)
    try:
        lines = read_data(file).decode().splitlines()
    except UnicodeDecodeError as error:
        raise StreamDataError(f"{option}: '{path}' is neither .npy nor text with one line per sample") from error
    return np.asarray(lines, dtype=str)


def _read_npy(file: FeatureFile) -> Iterator[Batch]:
    vectors = load_array(file.path, mapped=True)
    check_vectors(vectors, str(file.path))
    labels, domains = columns_of(file, len(vectors))
    for start in range(0, len(vectors), BATCH):
        part = slice(start, start + BATCH)
        yield Batch(np.asarray(vectors[part]), labels[part], None if domains is None else domains[part])


def columns_of(file: FeatureFile, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns labels and domains of a .npy file, which lie in files of their own.

    Raises:
        StreamDataError: no file is named, or it holds another number of them.
    """
    prefix = "test_" if file.option == "test_data" else ""
    if file.labels is None:
        raise StreamDataError(f"{prefix}labels: a .npy file contains no labels: give a label file (.npy or text)")
    labels = column_of(file.labels, f"{prefix}labels")
    domains = None if file.domains is None else column_of(file.domains, f"{prefix}domains")
    for option, found in (("labels", labels), ("domains", domains)):
        if found is not None and len(found) != count:
            raise StreamDataError(f"{prefix}{option}: {len(found)} for {count} samples of {file.path}")
    return labels, domains


def _read_npz(file: FeatureFile) -> Iterator[Batch]:
    try:
        with np.load(file.path) as archive:
            names = list(archive.files)
            wanted = file.columns[0] if file.columns else None
            chosen = {
                "columns": choose(wanted, FEATURES, names, f"{file.path}: array", "columns"),
                "labels": choose(file.labels, LABELS, names, f"{file.path}: array", "labels"),
                "domains": choose(file.domains, DOMAINS, names, f"{file.path}: array", "domains", needed=False),
            }
            arrays = {option: archive[name] for option, name in chosen.items() if name is not None}
    except (OSError, ValueError, EOFError, KeyError, AttributeError) as error:
        if isinstance(error, StreamDataError):
            raise
        raise StreamDataError(f"{file.path}: cannot be read as .npz: {_reason(error)}") from error
    vectors = arrays["columns"]
    check_vectors(vectors, f"{file.path}: array '{chosen['columns']}'")
    for option, array in arrays.items():
        if len(array) != len(vectors):
            raise StreamDataError(
                f"{file.path}: array '{chosen[option]}' has {len(array)} rows, but '{chosen['columns']}' has "
                f"{len(vectors)}"
            )
    yield Batch(vectors, arrays["labels"], arrays.get("domains"))


def choose(
    given: str | None, usual: Sequence[str], names: Sequence[str], where: str, option: str, *, needed: bool = True
) -> str | None:
    """Returns the name of a column or array: the one that is given, or the first usual one that is there.

    Raises:
        StreamDataError: it is not there.
    """
    if given is not None:
        if given not in names:
            close = difflib.get_close_matches(given, names, 1)
            hint = f"did you mean '{close[0]}'? known: " if close else "known: "
            raise StreamDataError(f"{option}: {where} '{given}' not found: {hint}{', '.join(names)}")
        return given
    found = next((name for name in usual if name in names), None)
    if found is None and needed:
        raise StreamDataError(
            f"{option}: {where} with a default name ({', '.join(usual)}) not found: choose one of {', '.join(names)}"
        )
    return found


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read_csv(file: FeatureFile) -> Iterator[Batch]:
    from streams.tables import read_csv  # pandas takes a second

    return read_csv(file)


def _read_parquet(file: FeatureFile) -> Iterator[Batch]:
    from streams.tables import read_parquet

    return read_parquet(file)


READERS: dict[str, Reader] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
