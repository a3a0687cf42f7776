"""The streams by name. A new one is a new file with a builder and an options dataclass, and one entry here;
a new data set of images is one entry in `images.DATASETS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any, Protocol

from streams.episodes import (
    FeatureEpisodeOptions,
    GlyphEpisodeOptions,
    HubEpisodeOptions,
    ImageFolderEpisodeOptions,
    build_episode,
)
from streams.errors import StreamDataError
from streams.features import FeatureOptions, build_features, load_features
from streams.glyphs import GlyphOptions, build_glyphs, load_glyphs
from streams.hf_dataset import HubOptions, build_hub, load_hub
from streams.image_folder import ImageFolderOptions, build_image_folder, load_image_folder
from streams.images import DATASETS, VARIANTS
from streams.needle import NeedleOptions, build_needle
from streams.options import checked_options
from streams.pg19 import PG19Options, build_pg19
from streams.recall import RecallOptions, RepeatedRecallOptions, build_recall
from streams.regression import RegressionOptions, build_regression
from streams.sine import SineOptions, build_sine
from streams.stream import Stream
from streams.text import TextOptions, build_text
from streams.text_classification import TextClassificationOptions, build_texts, load_texts


class StreamBuilder(Protocol):
    """Builds a stream from validated options."""

    def __call__(self, options: Any, *, seed: int) -> Stream: ...  # noqa: D102


@dataclass(frozen=True)
class StreamEntry:
    """A stream of the registry.

    Attributes:
        build: the builder.
        Options: dataclass of its options, with defaults; the fields' metadata hold help, choices and range.
        summary: one line for listings.
        kind: what its targets are, see `streams.stream.KINDS`.
        read: reads its data set, given the options, where other processes can be handed it (`streams.shared_data`).
    """

    build: StreamBuilder
    Options: type
    summary: str
    kind: str = "classes"
    read: Callable[[Any], Any] | None = None


class Streams(dict[str, StreamEntry]):
    """Streams by name; a name that is taken stays whose it is."""

    def __setitem__(self, name: str, entry: StreamEntry) -> None:
        """Enters a stream.

        Raises:
            ValueError: there is one of that name already.
            TypeError: it is no entry, or its options are no dataclass.
        """
        if name in self:
            raise ValueError(f"there is a stream '{name}' already: register yours under another name")
        if not isinstance(entry, StreamEntry):
            raise TypeError(f"stream '{name}': a {type(entry).__name__} is not a StreamEntry")
        if not (isinstance(entry.Options, type) and is_dataclass(entry.Options)):
            raise TypeError(f"stream '{name}': its options are not a dataclass: write @dataclass above the class")
        super().__setitem__(name, entry)


_OWN: dict[str, StreamEntry] = {
    **{
        f"{prefix}_{name}": StreamEntry(
            partial(variant.build, name),
            variant.InstalledOptions if dataset.installed else variant.Options,
            f"{dataset.summary}, {variant.summary}",
            read=dataset.load,
        )
        for prefix, variant in VARIANTS.items()
        for name, dataset in DATASETS.items()
    },
    "image_folder": StreamEntry(
        build_image_folder,
        ImageFolderOptions,
        "your own images: one folder per class, domain/class/, or a list of path,label[,domain]",
        read=load_image_folder,
    ),
    "features": StreamEntry(
        build_features,
        FeatureOptions,
        "your own feature vectors with labels and optional domains: .npy, .npz, CSV or Parquet",
        read=load_features,
    ),
    "text_classification": StreamEntry(
        build_texts,
        TextClassificationOptions,
        "your own texts with labels and optional domains: CSV, JSON lines, Parquet, or one folder per class",
        read=load_texts,
    ),
    "hf_dataset": StreamEntry(
        build_hub,
        HubOptions,
        "a data set of the `datasets` library, on disk or from the Hub: images, texts or feature vectors",
        read=load_hub,
    ),
    "glyphs": StreamEntry(
        build_glyphs,
        GlyphOptions,
        "characters rendered in installed typefaces, or those of a folder: thousands of classes without a download",
        read=load_glyphs,
    ),
    **{
        f"episodes_{name}": StreamEntry(
            partial(build_episode, f"episodes_{name}", load),
            options,
            f"{what}, few-shot episodes with random classes",
            read=load,
        )
        for name, load, options, what in (
            ("image_folder", load_image_folder, ImageFolderEpisodeOptions, "your own images"),
            ("features", load_features, FeatureEpisodeOptions, "your own feature vectors"),
            ("hf_dataset", load_hub, HubEpisodeOptions, "a data set of the `datasets` library"),
            ("glyphs", load_glyphs, GlyphEpisodeOptions, "characters in typefaces"),
        )
    },
    "recall": StreamEntry(
        partial(build_recall, "recall"),
        RecallOptions,
        "in-context recall: key-value pairs, then key queries",
        "tokens",
    ),
    "positional_recall": StreamEntry(
        partial(build_recall, "positional_recall"),
        RepeatedRecallOptions,
        "in-context recall in which a key's values are queried in the order of their bindings",
        "tokens",
    ),
    "rebinding": StreamEntry(
        partial(build_recall, "rebinding"),
        RepeatedRecallOptions,
        "in-context recall of keys that are rebound: the last value is correct",
        "tokens",
    ),
    "needle": StreamEntry(
        build_needle,
        NeedleOptions,
        "needles in a haystack of synthetic text, after RULER: single, multi-key and variable tracking",
        "tokens",
    ),
    "regression": StreamEntry(
        build_regression, RegressionOptions, "in-context regression of several interleaved functions", "values"
    ),
    "sine": StreamEntry(
        build_sine,
        SineOptions,
        "sine-wave regression episodes: a task maps a wave to one of the same frequency with another phase",
        "vectors",
    ),
    "text": StreamEntry(
        build_text,
        TextOptions,
        "byte-level language modelling by domain: your files, or those of the Python installation",
        "bytes",
    ),
    "pg19": StreamEntry(
        build_pg19,
        PG19Options,
        "byte-level language modelling of PG-19's books by period (files or a download)",
        "bytes",
    ),
}
STREAMS: dict[str, StreamEntry] = Streams(_OWN)


def build_stream(name: str, options: Any = None, *, seed: int) -> Stream:
    """Builds the stream `name`.

    Args:
        name: a key of `STREAMS`.
        options: an instance of the entry's `Options`, anything with the same attributes, or None for defaults.
        seed: decides what the stream leaves to chance (the order of the classes). The samples held out for validation
            and test are the same for all seeds. The global random state is neither used nor changed.

    Raises:
        ValueError: no stream has this name.
        StreamDataError: an option is wrong, or data is missing or damaged.
    """
    if name not in STREAMS:
        raise ValueError(f"unknown stream {name!r}; known streams: {', '.join(sorted(STREAMS))}")
    entry = STREAMS[name]
    stream = entry.build(checked_options(entry.Options, options), seed=seed)
    if not isinstance(stream, Stream):
        raise StreamDataError(f"'{name}' is built as a {type(stream).__name__}, but must be a Stream")
    return stream
