"""The options of a replay buffer, which several strategies share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cl_ovq.errors import UserError
from cl_ovq.options import COUNT, option

if TYPE_CHECKING:
    from streams import Stream


@dataclass
class BufferOptions:
    """How many past samples are kept."""

    buffer_size: int = option(200, "buffer size in samples", minimum=1, maximum=COUNT)
    buffer_bytes: int | None = option(
        None,
        "buffer size in bytes, instead of buffer_size: stored samples and their logits (der, derpp)",
        minimum=1,
        maximum=2**50,
    )


@dataclass
class PolicyOptions(BufferOptions):
    """Which past samples are kept."""

    buffer_policy: str = option(
        "class_balanced",
        "which past samples are kept; for sequences, which have no classes, class_balanced balances experiences",
        choices=("class_balanced", "experience_balanced", "reservoir"),
    )


@dataclass
class BatchOptions:
    """How many past samples a step takes."""

    buffer_batch_size: int | None = option(
        None, "past samples per training step; the same number as new ones if null", minimum=1, maximum=COUNT
    )


@dataclass
class ReplayOptions(BatchOptions, PolicyOptions):
    """A buffer whose samples are learned again beside the new ones."""


def logits_shape(stream: Stream) -> tuple[int, ...]:
    """Return the shape of a model's outputs for one sample."""
    numbers = stream.kind in ("values", "vectors")
    return tuple(stream.samples.targets.shape[1:] + (() if numbers else (stream.n_classes,)))


def buffer_samples(options: BufferOptions, stream: Stream, *, logits: bool = False) -> int:
    """Return how many samples a buffer can hold.

    Args:
        options: its size, in samples or in bytes.
        stream: whose samples are kept as they are stored.
        logits: whether a sample's logits are kept with it, as fp32.

    Raises:
        UserError: not one sample fits.
    """
    if options.buffer_bytes is None:
        return options.buffer_size
    size = stream.samples.sample_bytes + (4 * math.prod(logits_shape(stream)) if logits else 0)
    if options.buffer_bytes < size:
        raise UserError(f"strategy.buffer_bytes: {options.buffer_bytes} is too small: one sample takes {size} bytes")
    return options.buffer_bytes // size
