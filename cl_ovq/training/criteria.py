"""The training loss of each kind of stream, and the quantity that its results matrix holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.metric_names import QUANTITIES
from streams import IGNORED, STREAMS


class TokenCrossEntropy(nn.Module):
    """Mean cross-entropy over the tokens that have a target, in nats; zero where no token has one."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compare logits `[B, T, K]` with targets `[B, T]`."""
        total = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / (targets != IGNORED).sum().clamp(min=1)


class ValueSquaredError(nn.Module):
    """Mean squared error over the tokens that have a target (that is, no NaN); zero where no token has one.

    Of a vector for each sample, over its numbers.
    """

    def forward(self, values: Tensor, targets: Tensor) -> Tensor:
        """Compare values `[B, T]` with targets `[B, T]`."""
        known = ~targets.isnan()
        return (values - torch.where(known, targets, 0.0)).square().where(known, 0.0).sum() / known.sum().clamp(min=1)


@dataclass(frozen=True)
class Objective:
    """What is learned in streams of one kind.

    Attributes:
        criterion: the training loss.
        quantity: what the results matrix holds, a key of `QUANTITIES`.
    """

    criterion: type[nn.Module]
    quantity: str

    @property
    def sign(self) -> int:
        """1 if more of the quantity is better; -1 if less of it is, and the matrix holds it with the sign turned."""
        return QUANTITIES[self.quantity]


OBJECTIVES = {
    "classes": Objective(nn.CrossEntropyLoss, "accuracy"),
    "tokens": Objective(TokenCrossEntropy, "accuracy"),
    "bytes": Objective(TokenCrossEntropy, "bits_per_byte"),
    "values": Objective(ValueSquaredError, "squared_error"),
    "vectors": Objective(ValueSquaredError, "squared_error"),
}


def quantity_of(stream: str) -> str:
    """Return the quantity of a stream, given its name in the registry."""
    return OBJECTIVES[STREAMS[stream].kind].quantity


def has_target(targets: Tensor) -> Tensor:
    """Return where there is a target: everywhere in `[B]` classes, at those of `[B, T]` that are not left out."""
    return ~targets.isnan() if targets.is_floating_point() else targets != IGNORED


def count_targets(targets: Tensor) -> int:
    """Return how many targets a batch has."""
    return int(has_target(targets).sum())


def target_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of every target: cross-entropy in nats or squared error; zero where there is none.

    Args:
        outputs: logits `[B, C]` or `[B, T, C]`, or values `[B, T]`.
        targets: `[B]` or `[B, T]`, the shape that is returned.
    """
    if targets.is_floating_point():
        known = has_target(targets)
        return (outputs - torch.where(known, targets, 0.0)).square().where(known, 0.0)
    losses = functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(targets)


def sample_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of every sample's targets, `[B]`; see `target_losses`."""
    losses = target_losses(outputs, targets)
    if targets.ndim == 1:
        return losses
    return losses.sum(1) / has_target(targets).sum(1).clamp(min=1)
