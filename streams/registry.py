"""The streams by name. A new one is a new file with a builder and an options dataclass, and one entry here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from streams.digits import build_split_digits
from streams.fashion_mnist import build_split_fashion_mnist
from streams.options import SplitOptions, checked_options
from streams.stream import Stream


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
    """

    build: StreamBuilder
    Options: type
    summary: str


STREAMS: dict[str, StreamEntry] = {
    "split_digits": StreamEntry(
        build=build_split_digits,
        Options=SplitOptions,
        summary="scikit-learn's digits (1797 images of 8 x 8, 10 classes) split by class; nothing to download",
    ),
    "split_fashion_mnist": StreamEntry(
        build=build_split_fashion_mnist,
        Options=SplitOptions,
        summary="Fashion-MNIST (70 000 images of 28 x 28, 10 classes) split by class",
    ),
}


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
    return entry.build(checked_options(entry.Options, options), seed=seed)
