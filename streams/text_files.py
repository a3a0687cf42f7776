"""Reads texts with labels and domains from files, in batches: CSV, JSON lines, Parquet, or a folder a class."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from streams.class_folders import SampleFile, files_by_class
from streams.errors import StreamDataError
from streams.feature_files import BATCH, DOMAINS, LABELS, choose
from streams.files import kind_of, read_data
from streams.own_options import TEXTS

SUFFIXES = frozenset((".txt", ".text"))  # of files that hold one text
AT_ONCE = 256  # files of one text that are read at once


@dataclass(frozen=True)
class TextTable:
    """A file of texts, and what its columns are.

    Attributes:
        option: that names the file, for messages.
        path: the file.
        inputs: column of the texts; None to look for one of `TEXTS`.
        labels: column of the labels; None to look for one of `LABELS`.
        domains: column of the domains; None to look for one of `DOMAINS`.
    """

    option: str
    path: Path
    inputs: str | None
    labels: str | None
    domains: str | None

    def columns(self, names: Sequence[str]) -> list[str]:
        """Returns the columns of texts, labels and, if there are any, domains.

        Args:
            names: of all columns.

        Raises:
            StreamDataError: one is not there, or the labels are the texts.
        """
        where = f"{self.path}: column"
        inputs = str(choose(self.inputs, TEXTS, names, where, "inputs"))
        labels = str(choose(self.labels, LABELS, names, where, "labels"))
        domains = choose(self.domains, DOMAINS, names, where, "domains", needed=False)
        if inputs in (labels, domains):
            what = "labels" if inputs == labels else "domains"
            raise StreamDataError(f"inputs: {where} '{inputs}' contains the {what}")
        return [inputs, labels, *([] if domains is None else [domains])]


@dataclass(frozen=True)
class TextBatch:
    """Some texts of a file with their labels, and their domains or None; `names` of the columns, for messages."""

    texts: Sequence[str | None]
    labels: Any
    domains: Any
    names: Sequence[str]


def read_table(table: TextTable) -> Iterator[TextBatch]:
    """Yields the rows of a file in their order.

    Raises:
        StreamDataError: naming file, column and row of what cannot be read.
    """
    return READERS[kind_of(table.path, table.option, READERS)](table)


def find_texts(root: Path, option: str) -> list[SampleFile] | None:
    """Returns the files of a folder `class/text` or `domain/class/text`, by name; None if it is no folder.

    Raises:
        StreamDataError: the folder cannot be read, or is not such a one.
    """
    try:
        return files_by_class(root, SUFFIXES, option, "texts") if root.is_dir() else None
    except OSError as error:
        raise StreamDataError(f"{option}: '{error.filename or root}' cannot be read ({error.strerror})") from error


def read_text(path: Path) -> tuple[str, bytes]:
    """Returns the text of a file, and its content.

    Raises:
        StreamDataError: it cannot be read, or is not UTF-8.
    """
    content = read_data(path)
    try:
        return content.decode("utf-8-sig"), content
    except UnicodeDecodeError as error:
        raise StreamDataError(f"{path}: is not valid UTF-8: {error.reason} at byte {error.start}") from error


def _read_csv(table: TextTable) -> Iterator[TextBatch]:
    from streams.tables import csv_frames, csv_header, told_as  # pandas takes a second

    with told_as("CSV", table.path):
        header = csv_header(table.path)
        columns = table.columns(header)
        for frame in csv_frames(table.path, header, header):
            yield _batch(columns, [frame[name].tolist() for name in columns])


def _read_parquet(table: TextTable) -> Iterator[TextBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from streams.tables import texts_of, told_as

    with told_as("Parquet", table.path), pq.ParquetFile(table.path) as file:
        columns = table.columns(file.schema_arrow.names)
        for rows in file.iter_batches(BATCH, columns=columns):
            inputs = rows.column(columns[0])
            if not is_text(inputs.type):
                raise StreamDataError(f"inputs: {table.path}: column '{columns[0]}' contains {inputs.type}, not text")
            texts = inputs.cast(pa.large_string()).to_pylist()
            yield _batch(columns, [texts, *(texts_of(rows.column(name)) for name in columns[1:])])


def is_text(kind: Any) -> bool:
    """Returns whether an Arrow column of this type holds text."""
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _read_json(table: TextTable) -> Iterator[TextBatch]:
    """Yields the objects of a file that holds one a line; the first one's keys are the columns."""
    columns: list[str] = []
    cells: list[list[Any]] = []
    for number, line in enumerate(_lines(table.path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise StreamDataError(f"{table.path}, line {number}: is not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise StreamDataError(f"{table.path}, line {number}: is not a JSON object: each line must contain one")
        columns = columns or table.columns(list(row))
        for name in columns:
            if not isinstance(row.get(name), str if name == columns[0] else (str, int, float)):
                found = f"is {json.dumps(row[name])[:40]}" if name in row else "is missing"
                needed = "text" if name == columns[0] else "text or a number"
                raise StreamDataError(f"{table.path}, line {number}: '{name}' {found}, but must be {needed}")
        cells.append([row[name] for name in columns])
        if len(cells) == BATCH:
            yield _batch(columns, list(zip(*cells, strict=True)))
            cells = []
    if cells:
        yield _batch(columns, list(zip(*cells, strict=True)))


def _lines(path: Path) -> Iterator[str]:
    """Yields the lines of a text file, perhaps a compressed one."""
    openers: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    try:
        with openers.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8-sig") as file:
            yield from file
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        if isinstance(error, StreamDataError):
            raise
        raise StreamDataError(f"{path}: cannot be read as JSON lines: {' '.join(str(error).split())}") from error


def _batch(columns: Sequence[str], cells: Sequence[Any]) -> TextBatch:
    return TextBatch(cells[0], cells[1], cells[2] if len(cells) > 2 else None, columns)


READERS: dict[str, Callable[[TextTable], Iterator[TextBatch]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
