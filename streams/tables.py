"""Reads tables of features, a column each or a column of lists: CSV and Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from streams.errors import StreamDataError
from streams.feature_files import BATCH, DOMAINS, LABELS, Batch, FeatureFile, choose

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa


def read_csv(file: FeatureFile) -> Iterator[Batch]:
    """Yields the rows of a CSV file whose first line names the columns.

    Raises:
        StreamDataError: naming file, column and row of what cannot be read.
    """
    first = 0
    with told_as("CSV", file.path):
        header = csv_header(file.path)
        labels, domains, features = _columns(file, header)
        for frame in csv_frames(file.path, header, set(header) - set(features)):
            vectors = np.stack([_numbers(frame[name], file, first) for name in features], axis=1)
            of_domains = None if domains is None else frame[domains].to_numpy()
            yield Batch(vectors, frame[labels].to_numpy(), of_domains, features)
            first += len(frame)


def csv_header(path: Path) -> list[str]:
    """Returns the names of a CSV file's columns, which its first line holds.

    Raises:
        StreamDataError: two have the same name, which pandas would change.
    """
    written = pd.read_csv(path, sep=_separator(path), header=None, nrows=1, dtype=str, keep_default_na=False)
    names = written.iloc[0].tolist()
    if twice := [name for number, name in enumerate(names) if name in names[:number] and name]:
        raise StreamDataError(f"{path}: duplicate column name '{twice[0]}'")
    return list(pd.read_csv(path, sep=_separator(path), nrows=0).columns)


def csv_frames(path: Path, header: Sequence[str], as_text: Iterable[str]) -> Iterator[pd.DataFrame]:
    """Yields the rows of a CSV file, some at a time, in which no cell is taken for a missing value.

    Args:
        path: of the file; tabs separate the cells of a .tsv.
        header: names of its columns.
        as_text: those that stay as they are written.

    Raises:
        StreamDataError: rows have more cells than there are names.
    """
    # All columns are read: pandas, asked for some, drops the fields of a row that the header does not name.
    texts = dict.fromkeys(as_text, str)
    with pd.read_csv(path, sep=_separator(path), dtype=texts, keep_default_na=False, chunksize=BATCH) as frames:
        for frame in frames:
            if not isinstance(frame.index, pd.RangeIndex):  # pandas took the first fields for an index
                raise StreamDataError(
                    f"{path}: rows have more fields than the header has names ({len(header)}): "
                    "name every column, including a row index"
                )
            yield frame


def _separator(path: Path) -> str:
    return "\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes) else ","


@contextmanager
def told_as(kind: str, path: Path) -> Iterator[None]:
    """Tells in one line what a reader of a kind of file fails on."""
    import pyarrow as pa

    try:
        yield
    except StreamDataError:
        raise
    except pd.errors.EmptyDataError as error:
        raise StreamDataError(f"{path}: is empty") from error
    except UnicodeDecodeError as error:
        raise StreamDataError(f"{path}: is not valid UTF-8: {error.reason} at byte {error.start}") from error
    except (OSError, ValueError, EOFError, pd.errors.ParserError, pa.ArrowException) as error:
        raise StreamDataError(f"{path}: cannot be read as {kind}: {' '.join(str(error).split())}") from error


def _numbers(column: Any, file: FeatureFile, first: int) -> np.ndarray:
    """Returns a column as numbers; text among them is refused."""
    if column.dtype.kind in "fiub":
        return column.to_numpy(dtype=np.float64)
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.flatnonzero(np.isnan(numbers))
    if len(wrong):
        row = int(wrong[0])
        raise StreamDataError(
            f"{file.path}: column '{column.name}' of row {first + row + 1} is '{column.iloc[row]}', which is not a "
            "number: exclude the column with `columns`, or correct it"
        )
    return numbers


def read_parquet(file: FeatureFile) -> Iterator[Batch]:
    """Yields the rows of a Parquet file whose features are columns of numbers, or one column of lists of numbers.

    Raises:
        StreamDataError: naming file, column and row of what cannot be read.
    """
    import pyarrow.parquet as pq

    first = 0
    with told_as("Parquet", file.path), pq.ParquetFile(file.path) as table:
        labels, domains, features = _columns(file, table.schema_arrow.names)
        names = [*features, *(name for name in (labels, domains) if name is not None)]
        for rows in table.iter_batches(BATCH, columns=names):
            vectors = np.concatenate(
                [vectors_of(rows.column(name), name, str(file.path), first) for name in features], axis=1
            )
            of_domains = None if domains is None else texts_of(rows.column(domains))
            yield Batch(vectors, texts_of(rows.column(labels)), of_domains, features)
            first += rows.num_rows


def vectors_of(column: pa.Array, name: str, where: str, first: int) -> np.ndarray:
    """Returns a column of numbers as `[b, 1]`, one of lists of numbers as `[b, F]`.

    Args:
        column: of a batch.
        name: its name, for messages.
        where: it comes from, for messages.
        first: number of the batch's first row, for messages.

    Raises:
        StreamDataError: naming the row of what is no number, or missing.
    """
    import pyarrow as pa

    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise StreamDataError(f"{where}: column '{name}' of row {first + row + 1} is missing")
    if not isinstance(column, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        if not (
            pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)
        ):
            raise StreamDataError(
                f"{where}: column '{name}' contains {column.type}, not numbers: exclude it with `columns`"
            )
        return column.to_numpy(zero_copy_only=False)[:, None].astype(np.float64)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != lengths[0])
    if len(wrong):
        row = int(wrong[0])
        raise StreamDataError(
            f"{where}: column '{name}' of row {first + row + 1} has {lengths[row]} numbers, but row {first + 1} "
            f"has {lengths[0]}"
        )
    values = column.flatten().to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiub":
        raise StreamDataError(f"{where}: column '{name}' contains lists of {column.type.value_type}, not numbers")
    return values.reshape(len(column), int(lengths[0]))


def texts_of(column: pa.Array) -> np.ndarray:
    """Returns labels or domains; a missing one is empty."""
    values = column.to_numpy(zero_copy_only=False)
    if column.null_count:
        return np.asarray(["" if value is None or value != value else str(value) for value in values], dtype=str)
    return values


def _columns(file: FeatureFile, names: Sequence[str]) -> tuple[str, str | None, list[str]]:
    """Returns which columns are the labels, the domains if there are any, and the features."""
    where = f"{file.path}: column"
    labels = choose(file.labels, LABELS, names, where, "labels")
    domains = choose(file.domains, DOMAINS, names, where, "domains", needed=False)
    assert labels is not None
    if file.columns is None:
        features = [name for name in names if name not in (labels, domains)]
    else:
        features = [str(choose(name, (), names, where, "columns")) for name in file.columns]
    if not features:
        raise StreamDataError(f"columns: {file.path}: no feature columns remain: it has {', '.join(names)}")
    if labels in features:
        raise StreamDataError(f"columns: {where} '{labels}' contains the labels and cannot be a feature")
    if twice := [name for number, name in enumerate(features) if name in features[:number]]:
        raise StreamDataError(f"columns: {where} '{twice[0]}' is listed twice")
    return labels, domains, features
