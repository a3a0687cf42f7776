"""A stream of images or texts becomes one of the features that a frozen encoder has of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cl_ovq.encoders.base import ENCODERS, IMAGES, AnyEncoderOptions, encoders_of
from cl_ovq.encoders.frozen import NamedEncoder, features_root, named_encoder, package_versions, remember
from cl_ovq.encoders.network import HALF, EncoderNetwork, TextEncoderNetwork
from cl_ovq.encoders.preprocessing import check_channels
from cl_ovq.encoders.store import Encode, in_memory, stored
from cl_ovq.errors import UserError, first_line
from streams import Samples, Stream, TensorSamples, rows_of
from streams.benchmark import benchmark_of, shape_facts
from streams.cache import digest_of, remembered
from streams.progress import progress
from streams.samples import READ, named_inputs, samples_of
from streams.text_samples import TextSamples


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedStream(Stream):
    """A stream whose samples are features.

    Attributes:
        raw: the stream that they are of, of images or texts.
        encoder: what they were made by.
    """

    raw: Stream
    encoder: NamedEncoder


def with_encoder(
    stream: Stream, name: str, options: AnyEncoderOptions, device: torch.device, *, trained: bool
) -> Stream:
    """Return what a stream is with an encoder: one of features if it is frozen, and itself if it is to be trained.

    Its provenance says which encoder that is, and the options which weights it has.

    Args:
        stream: of images or texts.
        name: of the encoder.
        options: the section `encoder` of a configuration; its `sha256` is filled in.
        device: to compute on what was not computed before.
        trained: whether it is to be trained.

    Raises:
        UserError: see `encoded`.
    """
    if not trained:
        made = encoded(stream, name, options, device)
        options.sha256 = made.encoder.sha256
        return made
    _check_inputs(stream, name)
    encoder = named_encoder(name, options, None)
    check_channels(_shape(stream)[0], encoder.preprocessing)
    options.sha256 = encoder.sha256
    facts = {"encoder": {**encoder.facts, "packages": package_versions(name)}}
    return dataclasses.replace(stream, provenance={**stream.provenance, **facts})


def _shape(stream: Stream) -> tuple[int, ...]:
    found: tuple[int, ...] = stream.samples.sample_shape  # type: ignore[attr-defined]
    return found


def _check_inputs(stream: Stream, encoder: str) -> None:
    """Refuse samples that an encoder does not read."""
    has = named_inputs(_shape(stream)) if stream.kind == "classes" else "sequences"
    if has != ENCODERS[encoder].reads:
        raise UserError(
            f"encoder.name: '{encoder}' reads {ENCODERS[encoder].reads}, but '{stream.name}' has {has}: "
            f"{encoders_of(has)}"
        )


def encoded(stream: Stream, name: str, options: AnyEncoderOptions, device: torch.device) -> EncodedStream:
    """Return the stream of a stream's features.

    Args:
        stream: of images or texts.
        name: of the encoder.
        options: the section `encoder` of a configuration.
        device: to compute on what was not computed before.

    Raises:
        UserError: the encoder does not read the stream's samples, there is no such encoder, or the features cannot be
            kept.
    """
    _check_inputs(stream, name)
    root = features_root(options)
    encoder = named_encoder(name, options, root)
    if ENCODERS[name].reads == IMAGES:
        check_channels(_shape(stream)[0], encoder.preprocessing)
    digest = digest_of("encoded", encoder.identity, stream.samples.sha256())

    def encode(start: int) -> Iterator[np.ndarray]:
        return _encode(stream, encoder, device, start)

    about = {**encoder.facts, "packages": package_versions(name)}
    found = _features(root, digest, len(stream.samples), encode, about)
    if root is not None and encoder.missing is None:
        remember(encoder, root)
    if isinstance(stream.samples, TextSamples):
        about |= remembered(digest_of("truncation", digest), root, partial(_truncation, stream.samples, encoder))
    samples = samples_of(found.values, stream.samples.targets, divisor=1.0)
    provenance = {key: value for key, value in stream.provenance.items() if key != "image_shape"}
    provenance |= shape_facts(samples.sample_shape)
    provenance["encoder"] = {**about, "digest": digest, "features_sha256": found.sha256}
    fields = {field.name: getattr(stream, field.name) for field in dataclasses.fields(Stream)}
    fields |= {"samples": samples, "provenance": provenance, "benchmark": _benchmark(stream, samples)}
    return EncodedStream(**fields, raw=stream, encoder=encoder)


def _features(root: Path | None, digest: str, rows: int, encode: Encode, about: dict[str, Any]) -> Any:
    return in_memory(encode) if root is None else stored(root, digest, rows, encode, about)


def _encode(stream: Stream, encoder: NamedEncoder, device: torch.device, start: int) -> Iterator[np.ndarray]:
    """Yield the features of samples from a row on, a batch at a time.

    Raises:
        UserError: a feature is no number.
    """
    network = encoder.network().to(device)
    half = network.precision in HALF
    rows = torch.arange(start, len(stream.samples))
    with progress(f"encoding by {encoder.name}, samples", len(stream.samples)) as advance, torch.no_grad():
        advance(start)
        for batch in rows.split(encoder.options.batch_size):
            inputs = _inputs(stream.samples, batch, device)
            try:
                features = network(inputs).cpu()
            except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:  # the network's own
                if "memory" in str(error):
                    raise
                what = "texts"
                if isinstance(network, EncoderNetwork):
                    what = f"images of {list(network.preprocess(inputs).shape[1:])} (encoder.size)"
                raise UserError(f"encoder.name: {encoder.name} fails on {what}: {first_line(error)}") from error
            features = features.half() if half else features
            if not features.isfinite().all():
                row = int(batch[~features.isfinite().all(1)][0])
                raise UserError(
                    f"encoder.name: {encoder.name} returns non-finite features for sample {row}"
                    + (": use encoder.precision=float32" if half else "")
                )
            yield features.numpy()
            advance(len(batch))


def _inputs(samples: Samples, rows: torch.Tensor, device: torch.device) -> Any:
    return samples.texts(rows) if isinstance(samples, TextSamples) else samples.gather(rows).to(device)


def _truncation(samples: TextSamples, encoder: NamedEncoder) -> dict[str, Any]:
    """Return what a result says of texts that are longer than the encoder reads."""
    network = encoder.network()
    assert isinstance(network, TextEncoderNetwork)
    found: dict[str, int] = {}
    for rows in torch.arange(len(samples)).split(READ):
        part = network.truncation(samples.texts(rows))
        found = {**part, "truncated": found.get("truncated", 0) + part["truncated"]} if part else {}
    return found


def _benchmark(stream: Stream, samples: TensorSamples) -> Any:
    """Return the benchmark of a stream with other samples in the same rows."""
    parts, tasks = {}, np.zeros(len(samples), dtype=np.int64)
    for name, experiences in stream.benchmark.streams.items():
        parts[name] = [rows_of(experience.dataset).numpy() for experience in experiences]
        for experience, rows in zip(experiences, parts[name], strict=True):
            tasks[rows] = np.asarray(experience.dataset.targets_task_labels[:])
    labels = samples.targets.numpy()
    return benchmark_of(samples, parts, labels, tasks if tasks.any() else None)
