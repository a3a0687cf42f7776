"""The read-out of a memory head: Gaussian mixture regression over slots, with a power of the linear discriminant.

Letters as in `memory.py`: `B` samples, `F` features, `C` classes, `S` slots of a class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

FLOOR = 1e-6  # probability of all classes together, if none of them has been seen
_LOGITS = 1 << 22  # held at once


class Settings(NamedTuple):
    """What a read-out leaves to choose, see `MemoryHead`."""

    beta: float
    shrinkage: float
    class_weight: float
    confidence: float


class Reading(NamedTuple):
    """What a read-out needs, made from the state once after each write.

    Args:
        origin: `[F]` what is taken off features before they are whitened: their mean, for precision only.
        whiten: `[F, F]`.
        slots: `[C, S, F]` whitened slot means.
        weights: `[C, S]` log of each slot's share of its class, minus infinity in an empty slot of a class seen.
        means: `[C, F]` whitened class means.
        prior: `[C]` log of each class's prior, minus infinity for a class not seen.
    """

    origin: Tensor
    whiten: Tensor
    slots: Tensor
    weights: Tensor
    means: Tensor
    prior: Tensor


def similarities(x: Tensor, reading: Reading) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, of parts of the queries `[B, F]`, log-densities of slots `[b, C, S]` and class means `[b, C]`.

    They lack what all slots and classes of a query have in common, and it cancels.
    """
    slots, means = reading.slots.flatten(0, 1), reading.means
    for part in x.split(max(1, _LOGITS // len(slots))):
        q = (part - reading.origin) @ reading.whiten
        yield (
            torch.addmm(-slots.square().sum(1) / 2, q, slots.mT).view(-1, *reading.weights.shape),
            torch.addmm(-means.square().sum(1) / 2, q, means.mT),
        )


def magnitude(x: Tensor, *, rows: bool = False) -> Tensor:
    """Return the power of two next above the largest entry: divided by it, squares neither overflow nor vanish.

    Dividing by it rounds nothing, so what does not depend on scale stays the same in every bit.

    Args:
        x: `[B, F]`.
        rows: whether each row has its own, `[B, 1]`.
    """
    if len(x) == 0:
        largest = x.new_zeros((0, 1) if rows else ())
    else:  # `abs` and `aminmax` of few long rows take two and five times as long
        high, low = (x.amax(1, keepdim=True), x.amin(1, keepdim=True)) if rows else (x.max(), x.min())
        largest = torch.maximum(high, -low)
    return torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent.clamp(-126, 127))


def default_beta(features: int) -> float:
    """Return the inverse temperature where none was chosen: `min(1, 6 / sqrt(F))`.

    The more features there are, the more of them say the same, and the less evidence they are than an exact Gaussian
    would make of them. Measured on 64 to 1500 features; accuracy hardly changes between half and twice of it.
    """
    return min(1.0, 6 / math.sqrt(features))


def scores(slots: Tensor, means: Tensor, reading: Reading, beta: float, class_weight: float) -> Tensor:
    """Return log-densities `[b, C]` of classes but for a constant, from those of slots `[b, C, S]`, means `[b, C]`."""
    return (beta * slots + reading.weights).logsumexp(2) + class_weight * means + reading.prior


def log_probabilities(scored: Tensor, reading: Reading, confidence: float) -> Tensor:
    """Return log-probabilities `[B, C]` of such scores."""
    unseen, share = reading.prior.isinf(), FLOOR / scored.shape[1]
    log = (confidence * scored).log_softmax(1) + torch.log1p(-share * unseen.sum())
    return log.masked_fill(unseen, math.log(share))
