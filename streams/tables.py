"""Reads tables of features, a column each or a column of lists: CSV and Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from streams.errors import StreamDataError
from streams.feature_files import BATCH, DOMAINS, LABELS, Batch, FeatureFile, choose

if TYPE_CHECKING:
    import pyarrow as pa


def read_csv(file: FeatureFile) -> Iterator[Batch]:
    """Yields the rows of a CSV file whose first line names the columns.

    Raises:
        StreamDataError: naming file, column and row of what cannot be read.
    """
    separator = "\t" if ".tsv" in file.path.suffixes else ","
    first = 0
    try:
        header = list(pd.read_csv(file.path, sep=separator, nrows=0).columns)
        labels, domains, features = _columns(file, header)
        # All columns are read: pandas, asked for some, drops the fields of a row that the header does not name.
        frames = pd.read_csv(
            file.path,
            sep=separator,
            dtype=dict.fromkeys(set(header) - set(features), str),
            keep_default_na=False,
            chunksize=BATCH,
        )
        for frame in frames:
            if not isinstance(frame.index, pd.RangeIndex):  # pandas took the first fields for an index
                raise StreamDataError(
                    f"{file.path}: rows have more fields than the first line has names ({len(header)}): "
                    "name every column, a column of row numbers too"
                )
            vectors = np.stack([_numbers(frame[name], file, first) for name in features], axis=1)
            of_domains = None if domains is None else frame[domains].to_numpy()
            yield Batch(vectors, frame[labels].to_numpy(), of_domains, features)
            first += len(frame)
    except (OSError, ValueError, EOFError, pd.errors.ParserError) as error:
        if isinstance(error, StreamDataError):
            raise
        raise StreamDataError(f"{file.path}: cannot be read as CSV: {' '.join(str(error).split())}") from error


def _numbers(column: Any, file: FeatureFile, first: int) -> np.ndarray:
    """Returns a column as numbers; text among them is refused."""
    if column.dtype.kind in "fiub":
        return column.to_numpy(dtype=np.float64)
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.flatnonzero(np.isnan(numbers))
    if len(wrong):
        row = int(wrong[0])
        raise StreamDataError(
            f"{file.path}: column '{column.name}' of row {first + row + 1} is '{column.iloc[row]}', which is no "
            "number: leave the column out by `columns`, or correct it"
        )
    return numbers


def read_parquet(file: FeatureFile) -> Iterator[Batch]:
    """Yields the rows of a Parquet file whose features are columns of numbers, or one column of lists of numbers.

    Raises:
        StreamDataError: naming file, column and row of what cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0
    try:
        with pq.ParquetFile(file.path) as table:
            labels, domains, features = _columns(file, table.schema_arrow.names)
            names = [*features, *(name for name in (labels, domains) if name is not None)]
            for rows in table.iter_batches(BATCH, columns=names):
                vectors = np.concatenate(
                    [vectors_of(rows.column(name), name, str(file.path), first) for name in features], axis=1
                )
                of_domains = None if domains is None else texts_of(rows.column(domains))
                yield Batch(vectors, texts_of(rows.column(labels)), of_domains, features)
                first += rows.num_rows
    except (OSError, pa.ArrowException) as error:
        raise StreamDataError(f"{file.path}: cannot be read as Parquet: {' '.join(str(error).split())}") from error


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
                f"{where}: column '{name}' holds {column.type}, which is no number: leave it out by `columns`"
            )
        return column.to_numpy(zero_copy_only=False)[:, None].astype(np.float64)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != lengths[0])
    if len(wrong):
        row = int(wrong[0])
        raise StreamDataError(
            f"{where}: column '{name}' of row {first + row + 1} has {lengths[row]} numbers, and row {first + 1} "
            f"has {lengths[0]}"
        )
    values = column.flatten().to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiub":
        raise StreamDataError(f"{where}: column '{name}' holds lists of {column.type.value_type}, which are no numbers")
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
        raise StreamDataError(f"columns: {file.path}: no column is left for the features: it has {', '.join(names)}")
    if labels in features:
        raise StreamDataError(f"columns: {where} '{labels}' holds the labels, and cannot be a feature")
    if twice := [name for number, name in enumerate(features) if name in features[:number]]:
        raise StreamDataError(f"columns: {where} '{twice[0]}' is named twice")
    return labels, domains, features
