"""`text_classification`: texts of the user's own with labels and perhaps domains, from a table or a folder a class."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from streams.class_folders import parts_of
from streams.errors import StreamDataError
from streams.files import sha256_of, states_of
from streams.own_options import CacheOptions, CutOptions
from streams.shared_data import providable

if TYPE_CHECKING:
    from pathlib import Path

    from streams.cache import Sink
    from streams.class_folders import SampleFile
    from streams.split import LabelledData
    from streams.stream import Stream
    from streams.text_files import TextBatch, TextTable


@dataclass
class TextPlaces:
    """Where texts, labels and domains are."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "text file: .csv, .tsv, .jsonl (optionally .gz) or .parquet; or a folder with "
            "class/FILE.txt or domain/class/FILE.txt, optionally inside train/ and test/; required"
        },
    )
    test_data: str | None = field(
        default=None,
        metadata={"help": "test file or folder, in the same formats; a fraction of data is held out if null"},
    )
    inputs: str | None = field(
        default=None, metadata={"help": "text column; one called text, sentence or content if null"}
    )
    labels: str | None = field(
        default=None, metadata={"help": "label column; one called label, target, class or y if null"}
    )
    domains: str | None = field(
        default=None, metadata={"help": "domain column; one called domain if null, if it exists"}
    )
    class_names: list[str] | None = field(
        default=None, metadata={"help": "class names, in the order of the sorted labels; the labels if null"}
    )


@dataclass
class TextClassificationOptions(CacheOptions, CutOptions, TextPlaces):
    """Texts of the user's own."""


@dataclass(frozen=True)
class TextSource:
    """What decides the samples of the stream: hashable, to be handed over by it (`streams.shared_data`)."""

    data: str
    test_data: str | None
    columns: tuple[str | None, str | None, str | None]
    cache: bool
    cache_dir: str | None


@dataclass(frozen=True)
class _Part:
    """The training or the test texts: a table, or the files of a folder."""

    root: Path
    table: TextTable | None
    files: Sequence[SampleFile]


def load_texts(options: TextClassificationOptions) -> LabelledData:
    """Reads the data set that a stream's options ask for.

    Raises:
        StreamDataError: naming file, column and row of what cannot be read.
    """
    from streams.labels import renamed

    if options.data is None:
        raise StreamDataError("data: set a text file (.csv, .tsv, .jsonl, .parquet), or a folder class/FILE.txt")
    columns = (options.inputs, options.labels, options.domains)
    data = read_texts(TextSource(options.data, options.test_data, columns, options.cache, options.cache_dir))
    names = renamed(data.class_names, options.class_names)
    return replace(data, class_names=names, test_fraction=options.test_fraction)


@providable
def read_texts(source: TextSource) -> LabelledData:
    """Reads texts: those of the test data last.

    Raises:
        StreamDataError: naming file, column and row of what cannot be read.
    """
    from streams.cache import cache_root, cached, digest_of, in_memory

    parts = [_part(source, option, root) for option, root in parts_of(source.data, source.test_data)]
    tables = [part for part in parts if part.table is not None]
    if not tables and any(source.columns):
        raise StreamDataError("inputs, labels and domains: name table columns, but the data is a folder")

    def make(sink: Sink) -> LabelledData:
        return _read_all(parts, sink)

    if not source.cache:
        return in_memory(make)
    paths = [path for part in parts for path in ([part.root] if part.table else [file.path for file in part.files])]
    facts = (source.columns, [len(part.files) for part in parts], states_of(paths))
    return cached(digest_of("texts", *facts), cache_root(source.cache_dir), make)


def _part(source: TextSource, option: str, root: Path) -> _Part:
    from streams.text_files import TextTable, find_texts

    files = find_texts(root, option)
    return _Part(root, TextTable(option, root, *source.columns) if files is None else None, files or ())


def _read_all(parts: Sequence[_Part], sink: Sink) -> LabelledData:
    """Writes the texts of all parts, and returns what else there is of them."""
    import numpy as np

    from streams.labels import Names
    from streams.progress import progress
    from streams.split import LabelledData
    from streams.text_samples import TextWriter

    folders = not any(part.table for part in parts)
    labels, domains = (Names(what, verbatim=folders) for what in ("label", "domain"))
    writer = TextWriter(sink)
    counts: list[int] = []
    contents = hashlib.sha256()
    with_domains: bool | None = None
    for part in parts:
        counts.append(0)
        with progress(f"reading {part.root.name}, texts", len(part.files) or None) as advance:
            for batch in _batches(part, contents):
                if with_domains not in (None, batch.domains is not None):
                    raise StreamDataError(f"domains: only one of {parts[0].root} and {part.root} has domains")
                with_domains = batch.domains is not None
                places = [f"{part.root}: column '{name}'" if part.table else str(part.root) for name in batch.names]
                writer.write(batch.texts, places[0])
                labels.add(batch.labels, places[1])
                if with_domains:
                    domains.add(batch.domains, places[2])
                counts[-1] += len(batch.texts)
                advance(len(batch.texts))
        if not counts[-1]:
            raise StreamDataError(f"{part.root}: contains no texts")
    targets, class_names = labels.numbered()
    numbers, domain_names = domains.numbered() if with_domains else (None, ())
    files = {part.root.name: {"sha256": sha256_of(part.root)} for part in parts if part.table}
    return LabelledData(
        dataset=parts[0].root.name,
        source="stream.data",
        files=files | ({"texts": {"sha256": contents.hexdigest()}} if any(part.files for part in parts) else {}),
        inputs=np.empty(0),
        targets=targets,
        divisor=1.0,
        class_names=class_names,
        n_test=counts[1] if len(parts) > 1 else 0,
        domains=numbers,
        domain_names=domain_names,
        offsets=writer.offsets,
    )


def _batches(part: _Part, contents: hashlib._Hash) -> Iterator[TextBatch]:
    """Yields the texts of a part; the checksum takes in the names and contents of files that hold one."""
    from streams.text_files import AT_ONCE, TextBatch, read_table, read_text

    if part.table is not None:
        yield from read_table(part.table)
        return
    for start in range(0, len(part.files), AT_ONCE):
        files = part.files[start : start + AT_ONCE]
        texts = []
        for file in files:
            text, content = read_text(file.path)
            if not text.strip():
                raise StreamDataError(f"{file.path}: the text is missing")
            contents.update(file.name.encode() + b"\0" + hashlib.sha256(content).digest())
            texts.append(text)
        of_domains = None if files[0].domain is None else [file.domain for file in files]
        yield TextBatch(texts, [file.label for file in files], of_domains, ("text", "label", "domain"))


def build_texts(options: TextClassificationOptions, *, seed: int) -> Stream:
    """Builds the stream.

    Raises:
        StreamDataError: naming file, column, row or class of what is wrong.
    """
    from streams.own_data import build_own_stream

    return build_own_stream("text_classification", load_texts(options), options, seed=seed)
