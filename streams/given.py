"""A stream that somebody has made, among those that can be named, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streams.errors import StreamDataError
from streams.registry import STREAMS, StreamEntry

if TYPE_CHECKING:
    from streams.stream import Stream

# What a run tells of its data, beside the name.
NEEDED = ("dataset", "source", "files", "sizes", "split_sha256")


@dataclass
class GivenOptions:
    """What tells a stream that was given as an object from another; nothing of it can be chosen."""

    source: str | None = field(default=None, metadata={"help": "stream name"})
    scenario: str | None = field(default=None, metadata={"help": "scenario"})
    split_sha256: str | None = field(default=None, metadata={"help": "digest of the data"})


@contextmanager
def lent(stream: Stream, name: str) -> Iterator[dict[str, Any]]:
    """Enters a stream into the registry for as long as the `with` block; yields its options, with its name.

    Args:
        stream: is what is built under that name, whatever the seed.
        name: that no other stream has.

    Raises:
        StreamDataError: its provenance does not say what a result must say of its data.
    """
    missing = [key for key in NEEDED if key not in stream.provenance]
    if missing:
        raise StreamDataError(f"its provenance lacks {', '.join(missing)}: use `Stream.from_avalanche`")

    def build(options: Any, *, seed: int) -> Stream:
        if options.split_sha256 != digest:
            raise StreamDataError(f"'{stream.name}' has different data from that run's stream")
        return stream

    digest = stream.provenance["split_sha256"]
    STREAMS[name] = StreamEntry(build, GivenOptions, "a stream passed from Python", stream.kind)
    try:
        yield {"name": name, "source": stream.name, "scenario": stream.scenario, "split_sha256": digest}
    finally:
        del STREAMS[name]
