"""`features`: feature vectors of the user's own, with labels and perhaps domains, from .npy, .npz, CSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from streams.errors import StreamDataError
from streams.files import kind_of, named_path, sha256_of, states_of
from streams.own_options import CacheOptions, CutOptions
from streams.shared_data import providable

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from streams.cache import Sink
    from streams.feature_files import FeatureFile
    from streams.split import LabelledData
    from streams.stream import Stream


@dataclass
class FeatureFileOptions:
    """Where feature vectors, labels and domains are."""

    data: str | None = field(
        default=None,
        metadata={"help": "data file: .npy, .npz, .csv, .tsv (optionally .gz) or .parquet; required"},
    )
    test_data: str | None = field(
        default=None,
        metadata={"help": "test data file in any of these formats; a fraction of data is held out if null"},
    )
    labels: str | None = field(
        default=None,
        metadata={
            "help": "label column or .npz array; one called label, target, class or y if null; for a .npy "
            "file, the label file (.npy, or text with one label per line)"
        },
    )
    domains: str | None = field(
        default=None,
        metadata={
            "help": "domain column or .npz array; one called domain if null, if it exists; for a .npy "
            "file, the domain file"
        },
    )
    test_labels: str | None = field(default=None, metadata={"help": "label file for .npy test data"})
    test_domains: str | None = field(default=None, metadata={"help": "domain file for .npy test data"})
    columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "feature columns, of numbers or lists of numbers, or the array of an .npz file; all "
            "other columns if null, or an array called features, embeddings or x"
        },
    )
    class_names: list[str] | None = field(
        default=None, metadata={"help": "class names, in the order of the sorted labels; the labels if null"}
    )


@dataclass
class FeatureOptions(CacheOptions, CutOptions, FeatureFileOptions):
    """Feature vectors of the user's own."""


@dataclass(frozen=True)
class FeatureSource:
    """What decides the samples of the stream: hashable, to be handed over by it (`streams.shared_data`)."""

    files: tuple[FeatureFile, ...]
    cache: bool
    cache_dir: str | None


def source_of(options: FeatureOptions) -> FeatureSource:
    """Returns which files are to be read.

    Raises:
        StreamDataError: none is named, or an option would do nothing.
    """
    from streams.feature_files import FeatureFile

    if options.data is None:
        raise StreamDataError("data: set a data file: .npy, .npz, .csv, .tsv or .parquet")
    columns = None if options.columns is None else tuple(options.columns)
    files = [FeatureFile("data", named_path(options.data, "data"), options.labels, options.domains, columns)]
    array = options.test_data is not None and options.test_data.lower().endswith(".npy")
    if not array and (options.test_labels or options.test_domains):
        raise StreamDataError("test_labels and test_domains: used only if test_data is a .npy file")
    if options.test_data is not None:
        names = (options.test_labels, options.test_domains) if array else (options.labels, options.domains)
        files.append(FeatureFile("test_data", named_path(options.test_data, "test_data"), *names, columns))
    return FeatureSource(tuple(files), options.cache, options.cache_dir)


def load_features(options: FeatureOptions) -> LabelledData:
    """Reads the data set that a stream's options ask for.

    Raises:
        StreamDataError: naming file, column and row of what cannot be read.
    """
    from streams.labels import renamed

    data = read_features(source_of(options))
    names = renamed(data.class_names, options.class_names)
    return replace(data, class_names=names, test_fraction=options.test_fraction)


@providable
def read_features(source: FeatureSource) -> LabelledData:
    """Reads files of feature vectors: those of the test file last.

    A single .npy file of float16 or float32 is mapped as it lies; other files are copied into the cache.

    Raises:
        StreamDataError: naming file, column and row of what cannot be read.
    """
    from streams.cache import cache_root, cached, digest_of, in_memory
    from streams.feature_files import READERS

    kinds = [kind_of(file.path, file.option, READERS) for file in source.files]
    root = cache_root(source.cache_dir) if source.cache else None
    if root is not None and kinds == [".npy"] and (found := _mapped(source.files[0], root)) is not None:
        return found

    def make(sink: Sink) -> LabelledData:
        return _read_all(source.files, sink)

    # An .npz is read whole in any case.
    if root is None or ".npz" in kinds:
        return in_memory(make)
    named = [(str(file.labels), str(file.domains), file.columns) for file in source.files]
    return cached(digest_of("features", named, states_of(_paths(source.files))), root, make)


def _paths(files: tuple[FeatureFile, ...]) -> Iterator[Path]:
    """Yields every file that is read."""
    for file in files:
        yield file.path
        if file.path.suffix.lower() == ".npy":
            for option, name in (("labels", file.labels), ("domains", file.domains)):
                if name is not None:
                    yield named_path(name, option)


def _checksums(paths: Iterable[Path]) -> dict[str, dict[str, str]]:
    """Returns the checksum of each file by its name, or by its path where two have the same."""
    found: dict[str, dict[str, str]] = {}
    for path in paths:
        found[str(path) if path.name in found else path.name] = {"sha256": sha256_of(path)}
    return found


def _read_all(files: tuple[FeatureFile, ...], sink: Sink) -> LabelledData:
    """Writes the vectors of all files, and returns what else there is of them."""
    import numpy as np

    from streams.feature_files import read_batches
    from streams.labels import Names
    from streams.progress import progress
    from streams.split import LabelledData

    labels, domains = Names("label"), Names("domain")
    counts: list[int] = []
    features = None
    with_domains: bool | None = None
    for file in files:
        counts.append(0)
        with progress(f"reading {file.path.name}, samples") as advance:
            for batch in read_batches(file):
                width = batch.vectors.shape[1]
                if features not in (None, width):
                    raise StreamDataError(f"{file.path}: has {width} features, but {files[0].path} has {features}")
                if with_domains not in (None, batch.domains is not None):
                    raise StreamDataError(f"domains: only one of {files[0].path} and {file.path} has domains")
                features, with_domains = width, batch.domains is not None
                sink.write(batch.vectors.astype(np.float32, copy=False))
                labels.add(batch.labels, f"{file.path}: labels")
                if with_domains:
                    domains.add(batch.domains, f"{file.path}: domains")
                counts[-1] += len(batch.vectors)
                advance(len(batch.vectors))
        if not counts[-1]:
            raise StreamDataError(f"{file.path}: contains no samples")
    targets, class_names = labels.numbered()
    numbers, domain_names = domains.numbered() if with_domains else (None, ())
    return LabelledData(
        dataset=files[0].path.name,
        source="stream.data",
        files=_checksums(_paths(files)),
        inputs=np.empty(0),
        targets=targets,
        divisor=1.0,
        class_names=class_names,
        n_test=counts[1] if len(files) > 1 else 0,
        domains=numbers,
        domain_names=domain_names,
    )


def _mapped(file: FeatureFile, root: Path) -> LabelledData | None:
    """Returns the samples of a .npy file as they lie there; None if they cannot be used so."""
    import numpy as np

    from streams.cache import digest_of, remembered
    from streams.feature_files import check_vectors, columns_of, load_array
    from streams.labels import Names
    from streams.split import LabelledData

    vectors = load_array(file.path, mapped=True)
    check_vectors(vectors, str(file.path))
    if vectors.dtype not in (np.float16, np.float32) or not vectors.flags.c_contiguous or not len(vectors):
        return None
    found = columns_of(file, len(vectors))
    labels, domains = Names("label"), Names("domain")
    labels.add(found[0], f"{file.labels}")
    if found[1] is not None:
        domains.add(found[1], f"{file.domains}")
    targets, class_names = labels.numbered()
    numbers, domain_names = domains.numbered() if found[1] is not None else (None, ())
    name = digest_of("checked", states_of([file.path]))
    checked = remembered(name, root, lambda: {"sha256": _checked(file.path, vectors)})
    return LabelledData(
        dataset=file.path.name,
        source="stream.data",
        files={file.path.name: checked} | _checksums(list(_paths((file,)))[1:]),
        inputs=vectors,
        targets=targets,
        divisor=1.0,
        class_names=class_names,
        domains=numbers,
        domain_names=domain_names,
    )


def _checked(path: Path, vectors: np.ndarray) -> str:
    """Returns the sha256 of a .npy file, after looking at every number in it."""
    from streams.feature_files import BATCH, finite
    from streams.progress import progress

    size = max(1, min(BATCH, (1 << 26) // max(1, vectors[0].nbytes)))
    with progress(f"checking {path.name}, samples", len(vectors)) as advance:
        for start in range(0, len(vectors), size):
            part = vectors[start : start + size]
            finite(part, path, start)
            advance(len(part))
    return sha256_of(path)


def build_features(options: FeatureOptions, *, seed: int) -> Stream:
    """Builds the stream.

    Raises:
        StreamDataError: naming file, column, row or class of what is wrong.
    """
    from streams.own_data import build_own_stream

    return build_own_stream("features", load_features(options), options, seed=seed)
