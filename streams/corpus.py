"""Language modelling over bytes: texts become windows of bytes, each the next byte's question to the model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streams.counter_rng import Draws
from streams.errors import StreamDataError
from streams.sequences import LENGTH_DRAWS, SequenceSamples, concatenate, sequence_stream
from streams.stream import Stream

BYTES = 256


@dataclass(frozen=True)
class Domain:
    """The text of one experience.

    Attributes:
        name: what it is called.
        splits: bytes of `train`, `validation` and `test`.
        sha256: of all that was read.
        files: number of files that were read.
    """

    name: str
    splits: Mapping[str, bytes]
    sha256: str
    files: int


def cut(name: str, documents: Iterable[bytes], *, validation_fraction: float, limit: int) -> Domain:
    """Cuts documents into train, validation and test, 80 % and the rest, at two places.

    Paragraphs that came before are left out, so that no licence that comes with a hundred packages is in both.

    Args:
        name: of the domain.
        documents: in an order that has nothing to do with what they say.
        validation_fraction: of the text before the test part.
        limit: bytes that are read at most.
    """
    seen: set[bytes] = set()
    digest, files, size, kept = hashlib.sha256(), 0, 0, []
    for document in documents:
        digest.update(document)
        files += 1
        for paragraph in document.replace(b"\r\n", b"\n").split(b"\n\n"):
            key = hashlib.sha256(b" ".join(paragraph.split()).lower()).digest()
            if key not in seen:
                seen.add(key)
                kept.append(paragraph)
                size += len(paragraph) + 2
        if size >= limit:
            break
    text = b"\n\n".join(kept)[:limit]
    first = round(0.8 * len(text))
    second = round((1 - validation_fraction) * first)
    splits = {"train": text[:second], "validation": text[second:first], "test": text[first:]}
    return Domain(name, splits, digest.hexdigest(), files)


def build_byte_stream(name: str, domains: Sequence[Domain], options: Any, source: str, *, seed: int) -> Stream:
    """Builds the stream of domains, one an experience.

    Args:
        name: the stream's name.
        domains: in their order.
        options: have `length`, `train`, `validation`, `test` (windows of an experience) and `blur`.
        source: where the text was found.
        seed: decides which windows are for training; those for validation and test are the same for all seeds.

    Raises:
        StreamDataError: a domain is too small for a single window.
    """
    counts = {"train": options.train, "validation": options.validation, "test": options.test}
    parts = {
        split: [
            windows(domain, split, options.length, count, Draws(name, domain.name, split, seed * (split == "train")))
            for domain in domains
        ]
        for split, count in counts.items()
    }

    def at_length(tokens: int, count: int, split: str) -> SequenceSamples:
        purpose = LENGTH_DRAWS[split]
        size = (count + len(domains) - 1) // len(domains)
        return concatenate([windows(d, split, tokens, size, Draws(name, d.name, purpose, tokens)) for d in domains])

    return sequence_stream(
        name,
        parts,
        kind="bytes",
        outputs=BYTES,
        experience_names=[domain.name for domain in domains],
        provenance={
            "dataset": name,
            "source": source,
            "files": {domain.name: {"sha256": domain.sha256, "files": domain.files} for domain in domains},
        },
        blur=options.blur,
        seed=seed,
        at_length=at_length,
    )


def windows(domain: Domain, split: str, length: int, count: int, draws: Draws) -> SequenceSamples:
    """Draws windows of a domain's text that do not overlap; fewer than `count` where there are no more.

    Raises:
        StreamDataError: there is not one.
    """
    text = np.frombuffer(domain.splits[split], dtype=np.uint8)
    there = max(0, len(text) - 1) // length
    if count and not there:
        raise StreamDataError(
            f"{domain.name}: its {split} text has only {len(text)} bytes, less than a window of length={length}: "
            "provide more text, or a smaller length"
        )
    starts = np.sort(draws.orders(1, there)[0, :count]) * length if count else np.zeros(0, dtype=np.int64)
    tokens = text[starts[:, None] + np.arange(length + 1)].astype(np.int32)
    return SequenceSamples(tokens[:, :-1].copy(), tokens[:, 1:].astype(np.int64), names=byte_name)


def byte_name(byte: int) -> str:
    """Returns a byte as it is shown."""
    return chr(byte) if 32 <= byte < 127 or byte in b"\n\t" else f"\\x{byte:02x}"
