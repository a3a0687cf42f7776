"""`hf_dataset`: a data set of the `datasets` library, on disk or from the hub: images, texts or feature vectors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams.errors import StreamDataError
from streams.files import named_path, read_data, states_of
from streams.image_folder import ImageForm
from streams.own_options import TEXTS, CacheOptions, CutOptions
from streams.shared_data import providable

if TYPE_CHECKING:
    import pyarrow as pa

    from streams.cache import Sink
    from streams.image_files import Form
    from streams.split import LabelledData
    from streams.stream import Stream

INPUTS = ("image", "img", "images", "features", "embedding", "embeddings", "x", *TEXTS)
LABELS = ("label", "labels", "fine_label", "target", "class", "y")
DOMAINS = ("domain", "domains")
KINDS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
AT_ONCE = 256


@dataclass
class HubPlaces:
    """Which data set is read, and what its columns are."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "folder written by `save_to_disk`, folder or file in Parquet, CSV, JSON or Arrow format, "
            "or name of a data set on the Hub; required"
        },
    )
    subset: str | None = field(default=None, metadata={"help": "configuration, for a data set with several"})
    revision: str | None = field(default=None, metadata={"help": "commit, tag or branch of a data set on the Hub"})
    train_split: str = field(default="train", metadata={"help": "split for training and validation samples"})
    test_split: str | None = field(
        default=None,
        metadata={"help": "split for test samples; null: `test`, or, without that split, a held-out fraction"},
    )
    inputs: str | None = field(
        default=None,
        metadata={
            "help": "column of images, text or lists of numbers; one called image, features, embedding or text if null"
        },
    )
    labels: str | None = field(default=None, metadata={"help": "label column; one called label if null"})
    domains: str | None = field(
        default=None, metadata={"help": "domain column; one called domain if null, if it exists"}
    )


@dataclass
class HubOptions(CacheOptions, CutOptions, ImageForm, HubPlaces):
    """A data set of the `datasets` library."""


@dataclass(frozen=True)
class HubSource:
    """What decides the samples of the stream: hashable, to be handed over by it (`streams.shared_data`)."""

    data: str
    subset: str | None
    revision: str | None
    splits: tuple[str, str | None]
    columns: tuple[str | None, str | None, str | None]
    form: Form
    cache: bool
    cache_dir: str | None


def load_hub(options: HubOptions) -> LabelledData:
    """Reads the data set that a stream's options ask for.

    Raises:
        StreamDataError: it is not found, or a column is not what it should be.
    """
    from streams.image_files import Form

    if options.data is None:
        raise StreamDataError("data: set a folder or file of a data set, or a data set on the Hub")
    source = HubSource(
        options.data,
        options.subset,
        options.revision,
        (options.train_split, options.test_split),
        (options.inputs, options.labels, options.domains),
        Form(options.size, options.channels, options.fit),
        options.cache,
        options.cache_dir,
    )
    return replace(read_hub(source), test_fraction=options.test_fraction)


@providable
def read_hub(source: HubSource) -> LabelledData:
    """Reads a data set of the `datasets` library: its test split last.

    Raises:
        StreamDataError: the library is not installed, the data set is not found, or a column is not what it should be.
    """
    from streams.cache import cache_root, cached, digest_of, in_memory

    parts = _splits(source, _opened(source))
    facts = [(str(part.features), part._fingerprint, len(part)) for part in parts]
    files = [named_path(file["filename"], "data") for part in parts for file in part.cache_files]
    names = parts[0].features.get(source.columns[1] or _first(LABELS, parts[0].column_names))
    class_names = getattr(names, "names", None)
    tables = [part.with_format("arrow").iter(AT_ONCE) for part in parts]

    def make(sink: Sink) -> LabelledData:
        return read_tables(source, tables, [len(part) for part in parts], class_names, sink)

    if not source.cache:
        return in_memory(make)
    name = digest_of("hub", facts, source.columns, vars(source.form), states_of(files))
    return cached(name, cache_root(source.cache_dir), make)


def _first(usual: Sequence[str], names: Sequence[str]) -> str:
    return next((name for name in usual if name in names), "")


def _opened(source: HubSource) -> Any:
    """Returns the data set or its splits, as the library has them."""
    try:
        import datasets
    except ImportError as error:
        raise StreamDataError("data: needs the package `datasets`: pip install 'cl-ovq[datasets]'") from error
    place = named_path(source.data, "data")
    try:
        if place.is_file():
            return datasets.load_dataset(_kind(place), data_files=str(place))
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            return datasets.load_from_disk(str(place))
        return datasets.load_dataset(source.data, name=source.subset, revision=source.revision)
    except Exception as error:  # of whatever kind: the hub's, the network's, those of its readers
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StreamDataError(f"data: '{source.data}' cannot be read as a data set: {reason}") from error


def _kind(path: Path) -> str:
    if path.suffix not in KINDS:
        raise ValueError(f"a file must be one of {', '.join(KINDS)}")
    return KINDS[path.suffix]


def _splits(source: HubSource, found: Any) -> list[Any]:
    """Returns the training split, and the test split if there is one."""
    if not hasattr(found, "keys"):  # a data set without splits
        return [found]
    train, test = source.splits
    if test is None and "test" in found and train != "test":
        test = "test"
    for option, name in (("train_split", train), ("test_split", test)):
        if name is not None and name not in found:
            raise StreamDataError(f"{option}: '{source.data}' has no split '{name}': known: {', '.join(found)}")
    return [found[name] for name in (train, test) if name is not None]


def read_tables(
    source: HubSource,
    tables: Sequence[Iterator[pa.Table]],
    sizes: Sequence[int],
    class_names: Sequence[str] | None,
    sink: Sink,
) -> LabelledData:
    """Writes the samples of Arrow tables, and returns what else there is of them.

    Args:
        source: which columns, and what images are made into.
        tables: of each split, in batches.
        sizes: samples of each split.
        class_names: by the number that is the label; None where labels name themselves.
        sink: takes the samples.

    Raises:
        StreamDataError: a column is missing, or not what it should be.
    """
    import numpy as np
    import pyarrow as pa

    from streams.feature_files import choose, finite
    from streams.image_files import decode_all
    from streams.labels import Names
    from streams.progress import progress
    from streams.split import LabelledData
    from streams.tables import texts_of, vectors_of
    from streams.text_files import is_text
    from streams.text_samples import TextWriter

    labels, domains = Names("label"), Names("domain")
    where, has_domains, divisor = f"'{source.data}': column", False, 1.0
    writer: TextWriter | None = None

    def batches() -> Iterator[tuple[Any, str, int]]:
        """Yields the column of inputs of each table, its name and the number of its first row."""
        nonlocal has_domains
        first = 0
        for table in (table for split in tables for table in split):
            names = table.column_names
            inputs = str(choose(source.columns[0], INPUTS, names, where, "inputs"))
            label = choose(source.columns[1], LABELS, names, where, "labels")
            if inputs == label:
                raise StreamDataError(f"inputs: {where} '{label}' contains the labels")
            domain = choose(source.columns[2], DOMAINS, names, where, "domains", needed=False)
            labels.add(texts_of(table.column(label)), f"{where} '{label}'")
            has_domains = domain is not None
            if has_domains:
                domains.add(texts_of(table.column(domain)), f"{where} '{domain}'")
            yield table.column(inputs).combine_chunks(), inputs, first
            first += table.num_rows

    with progress("reading, samples", sum(sizes)) as advance:
        for column, name, first in (rest := batches()):
            if pa.types.is_struct(column.type):  # images, from here to the end
                divisor = 255.0
                for images, _ in decode_all(_images(itertools.chain([(column, name, first)], rest)), source.form):
                    sink.write(images)
                    advance(len(images))
            elif is_text(column.type):
                writer = writer or TextWriter(sink)
                writer.write(column.cast(pa.large_string()).to_pylist(), f"{where} '{name}'")
                advance(len(column))
            else:
                vectors = vectors_of(column, name, f"'{source.data}'", first)
                sink.write(finite(vectors, f"'{source.data}'", first).astype(np.float32, copy=False))
                advance(len(vectors))
    if not sink.shape[0]:
        raise StreamDataError(f"data: '{source.data}' contains no samples")
    targets, found = labels.numbered()
    if class_names and (wrong := [name for name in found if not 0 <= int(name) < len(class_names)]):
        raise StreamDataError(
            f"'{source.data}': the label {wrong[0]} is not one of its {len(class_names)} classes: -1 means a "
            "withheld label, as in many test splits: choose another split with `test_split`"
        )
    numbers, domain_names = domains.numbered() if has_domains else (None, ())
    return LabelledData(
        dataset=source.data,
        source="the datasets library",
        files={"decoded": {"sha256": sink.sha256, **({"revision": source.revision} if source.revision else {})}},
        inputs=np.empty(0),
        targets=targets,
        divisor=divisor,
        class_names=tuple(class_names[int(name)] for name in found) if class_names else found,
        n_test=sizes[1] if len(sizes) > 1 else 0,
        domains=numbers,
        domain_names=domain_names,
        offsets=None if writer is None else writer.offsets,
    )


def _images(batches: Iterable[tuple[Any, str, int]]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yields the name of each image of a column, and what reads it: it is stored as its bytes, or as its path."""
    for column, name, first in batches:
        for row, cell in enumerate(column.to_pylist(), start=first + 1):
            yield f"column '{name}', row {row}", partial(_content, cell or {})


def _content(cell: Mapping[str, Any]) -> bytes:
    if cell.get("bytes") is not None:
        return bytes(cell["bytes"])
    if cell.get("path") is None:
        raise ValueError("the image is missing")
    return read_data(Path(cell["path"]))


def build_hub(options: HubOptions, *, seed: int) -> Stream:
    """Builds the stream.

    Raises:
        StreamDataError: the data set is not found, or a column or option does not fit.
    """
    from streams.own_data import build_own_stream

    return build_own_stream("hf_dataset", load_hub(options), options, seed=seed)
