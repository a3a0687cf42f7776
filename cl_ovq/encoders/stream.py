"""A stream of images becomes one of the features that a frozen encoder has of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cl_ovq.encoders.base import EncoderOptions
from cl_ovq.encoders.frozen import NamedEncoder, features_root, named_encoder, package_versions, remember
from cl_ovq.encoders.network import HALF
from cl_ovq.encoders.preprocessing import check_channels
from cl_ovq.encoders.store import Encode, in_memory, stored
from cl_ovq.encoders.tuning import is_tuned
from cl_ovq.errors import UserError, first_line
from streams import Stream, TensorSamples, rows_of
from streams.benchmark import benchmark_of, shape_facts
from streams.cache import digest_of
from streams.progress import progress
from streams.samples import samples_of


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedStream(Stream):
    """A stream whose samples are features.

    Attributes:
        images: the stream that they are of.
        encoder: what they were made by.
    """

    images: Stream
    encoder: NamedEncoder


def with_encoder(stream: Stream, name: str, options: EncoderOptions, device: torch.device) -> Stream:
    """Return what a stream is with an encoder: one of features if it is frozen, and itself if it is to be trained.

    Its provenance says which encoder that is, and the options which weights it has.

    Args:
        stream: of images.
        name: of the encoder.
        options: the section `encoder` of a configuration; its `sha256` is filled in.
        device: to compute on what was not computed before.

    Raises:
        UserError: see `encoded`.
    """
    if not is_tuned(options):
        made = encoded(stream, name, options, device)
        options.sha256 = made.encoder.sha256
        return made
    _check_images(stream, name)
    encoder = named_encoder(name, options, None)
    check_channels(stream.samples.sample_shape[0], encoder.preprocessing)  # type: ignore[attr-defined]
    options.sha256 = encoder.sha256
    facts = {"encoder": {**encoder.facts, "packages": package_versions(name)}}
    return dataclasses.replace(stream, provenance={**stream.provenance, **facts})


def _check_images(stream: Stream, name: str) -> tuple[int, ...]:
    shape: tuple[int, ...] = getattr(stream.samples, "sample_shape", ())
    if stream.kind != "classes" or len(shape) != 3:
        has = "vectors" if stream.kind == "classes" else "sequences"
        raise UserError(f"encoder.name: '{name}' reads images, and '{stream.name}' has {has}: use encoder.name=none")
    return shape


def encoded(stream: Stream, name: str, options: EncoderOptions, device: torch.device) -> EncodedStream:
    """Return the stream of a stream's features.

    Args:
        stream: of images.
        name: of the encoder.
        options: the section `encoder` of a configuration.
        device: to compute on what was not computed before.

    Raises:
        UserError: the stream has no images, there is no such encoder, or the features cannot be kept.
    """
    shape = _check_images(stream, name)
    root = features_root(options)
    encoder = named_encoder(name, options, root)
    check_channels(shape[0], encoder.preprocessing)
    digest = digest_of("encoded", encoder.identity, stream.samples.sha256())

    def encode(start: int) -> Iterator[np.ndarray]:
        return _encode(stream, encoder, device, start)

    about = {**encoder.facts, "packages": package_versions(name)}
    found = _features(root, digest, len(stream.samples), encode, about)
    if root is not None and encoder.missing is None:
        remember(encoder, root)
    samples = samples_of(found.values, stream.samples.targets, divisor=1.0)
    provenance = {key: value for key, value in stream.provenance.items() if key != "image_shape"}
    provenance |= shape_facts(samples.sample_shape)
    provenance["encoder"] = {**about, "digest": digest, "features_sha256": found.sha256}
    fields = {field.name: getattr(stream, field.name) for field in dataclasses.fields(Stream)}
    fields |= {"samples": samples, "provenance": provenance, "benchmark": _benchmark(stream, samples)}
    return EncodedStream(**fields, images=stream, encoder=encoder)


def _features(root: Path | None, digest: str, rows: int, encode: Encode, about: dict[str, Any]) -> Any:
    return in_memory(encode) if root is None else stored(root, digest, rows, encode, about)


def _encode(stream: Stream, encoder: NamedEncoder, device: torch.device, start: int) -> Iterator[np.ndarray]:
    """Yield the features of samples from a row on, a batch at a time.

    Raises:
        UserError: a feature is no number.
    """
    network = encoder.network().to(device)
    half = encoder.options.precision in HALF
    rows = torch.arange(start, len(stream.samples))
    with progress(f"encoding by {encoder.name}, samples", len(stream.samples)) as advance, torch.no_grad():
        advance(start)
        for batch in rows.split(encoder.options.batch_size):
            images = stream.samples.gather(batch).to(device)
            try:
                features = network(images).cpu()
            except (RuntimeError, ValueError, AssertionError, TypeError) as error:  # the network's own
                if "memory" in str(error):
                    raise
                shape = list(network.preprocess(images).shape[1:])
                raise UserError(
                    f"encoder.name: {encoder.name} fails on images of {shape} (encoder.size): {first_line(error)}"
                ) from error
            features = features.half() if half else features
            if not features.isfinite().all():
                row = int(batch[~features.isfinite().all(1)][0])
                raise UserError(
                    f"encoder.name: {encoder.name} gives sample {row} features that are not finite"
                    + (": use encoder.precision=float32" if half else "")
                )
            yield features.numpy()
            advance(len(batch))


def _benchmark(stream: Stream, samples: TensorSamples) -> Any:
    """Return the benchmark of a stream with other samples in the same rows."""
    parts, tasks = {}, np.zeros(len(samples), dtype=np.int64)
    for name, experiences in stream.benchmark.streams.items():
        parts[name] = [rows_of(experience.dataset).numpy() for experience in experiences]
        for experience, rows in zip(experiences, parts[name], strict=True):
            tasks[rows] = np.asarray(experience.dataset.targets_task_labels[:])
    labels = samples.targets.numpy()
    return benchmark_of(samples, parts, labels, tasks if tasks.any() else None)
