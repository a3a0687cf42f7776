"""Frozen encoders: which weights they are, and the mode that they compute in."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn


def encoder_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return all parameters of a network but its head's."""
    return [parameter for name, parameter in network.named_parameters() if not name.startswith("head.")]


def slow_encoder(groups: list[dict[str, Any]], network: nn.Module, share: float) -> list[dict[str, Any]]:
    """Return groups of parameters for an optimizer, first those with the head's, then those with the encoder's.

    Args:
        groups: as an optimizer takes them.
        network: has a `head`. Of a task-masked model this is the network inside.
        share: of the learning rate that the encoder is to have; groups hold it, or 1, as `share`.
    """
    slow = set(encoder_parameters(network))
    return [
        {**group, "params": [weight for weight in group["params"] if (weight in slow) == is_slow], "share": part}
        for is_slow, part in ((False, 1.0), (True, share))
        for group in groups
    ]


def learns(network: nn.Module) -> bool:
    """Return whether anything but a network's head is trained by gradients."""
    return any(parameter.requires_grad for parameter in encoder_parameters(network))


def freeze_encoder(network: nn.Module) -> None:
    """Freeze everything but a network's head.

    The weights get no gradients, and the encoder computes in evaluation mode whatever mode the network is set to:
    without dropout, with fixed batch-norm statistics and fixed VQ codebooks. The head still follows the mode.
    Persistent dictionaries are memory, not weights: training steps keep writing them.

    Args:
        network: has a `head`. Of a task-masked model this is the network inside (`heads.unwrap`).

    Raises:
        ValueError: it has no head.
    """
    if not hasattr(network, "head"):
        raise ValueError(f"{type(network).__name__} has no head to tell from its encoder: pass `unwrap(model)`")
    for parameter in encoder_parameters(network):
        parameter.requires_grad_(False)
        parameter.grad = None
    # Set on this very network, so that any module can be frozen; a partial, so that copies and pickles keep it.
    network.train = partial(_train_head, network)  # type: ignore[method-assign]
    _train_head(network, network.head.training)  # type: ignore[union-attr]


def _train_head(network: nn.Module, mode: bool = True) -> nn.Module:
    """Stand in for `network.train`."""
    type(network).train(network, False)
    head: nn.Module = network.head  # type: ignore[assignment]
    head.train(mode)
    return network
