"""What a model from outside must be, for the run that it is given to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from cl_ovq.config import ExperimentConfig
from cl_ovq.errors import UserError, own_code
from cl_ovq.models.freezing import learns
from cl_ovq.seeding import unchanged_randomness
from cl_ovq.strategies import STRATEGIES

if TYPE_CHECKING:
    from streams import Stream


def check_contract(network: nn.Module, config: ExperimentConfig, stream: Stream) -> None:
    """Check a model on two samples of the stream: its outputs, and what configuration and strategy need of it.

    Args:
        network: maps a batch to logits `[B, n_classes]`; of a stream of sequences `[B, T, n_classes]`, or numbers
            `[B, T]`. Its last layer is called `head`, and what comes before it `features`, where that is needed.
        config: names strategy and head.
        stream: to be learned.

    Raises:
        UserError: saying what is missing, and what for.
    """
    name, reasons = type(network).__name__, _needs_head(network, config)
    head = getattr(network, "head", None)
    if reasons and not isinstance(head, nn.Linear):
        raise UserError(f"model: {name} has no last layer `head` that is an nn.Linear, which {reasons[0]} needs")
    if config.memory is not None and config.memory.calibrate and not hasattr(network, "features"):
        raise UserError(f"model: {name} has no method `features`, which memory.calibrate needs")
    if config.evaluation.lengths and not (hasattr(network, "forward_with_state") and hasattr(network, "state_bytes")):
        raise UserError(
            f"model: {name} has no methods `forward_with_state` and `state_bytes`, which evaluation.lengths needs"
        )
    _check_trainable(network, config)
    rows = torch.arange(min(2, len(stream.samples)))
    x = stream.samples.gather(rows)
    outputs, called = _tried(network, x, stream)
    targets = stream.samples.targets[rows]
    wanted = tuple(targets.shape) if stream.kind == "values" else (*targets.shape, stream.n_classes)
    if not isinstance(outputs, torch.Tensor) or tuple(outputs.shape) != wanted:
        found = list(outputs.shape) if isinstance(outputs, torch.Tensor) else f"a {type(outputs).__name__}"
        raise UserError(
            f"model: {name} maps {len(rows)} samples of '{stream.name}' to {found}, and must to {list(wanted)}"
        )
    if reasons and not called:
        raise UserError(f"model: {name} does not call its `head` in its forward pass, which {reasons[0]} needs")
    if not torch.allclose(x, stream.samples.gather(rows), rtol=0, atol=0, equal_nan=True):
        raise UserError(
            f"model: {name} changes the batch that it is given, in place, and strategies read it again: let it work on "
            "a copy"
        )


def _check_trainable(network: nn.Module, config: ExperimentConfig) -> None:
    """Refuse a model that a strategy is to train by gradients, and that has no weights for that."""
    if STRATEGIES[config.strategy.name].is_head or config.memory is not None:
        return
    mode = config.model.train_encoder
    which, trained = ("", network) if mode == "always" else ("of its `head` ", cast(nn.Module, network.head))
    if not any(parameter.requires_grad for parameter in trained.parameters()):
        raise UserError(
            f"model: {type(network).__name__} has no parameter {which}that requires a gradient, which "
            f"strategy.name={config.strategy.name} with model.train_encoder={mode} needs"
        )


def _tried(network: nn.Module, x: torch.Tensor, stream: Stream) -> tuple[Any, list[Any]]:
    """Return what a model in evaluation mode makes of a batch, and an entry for each call of its head."""
    what = f"model: {type(network).__name__} does not take a batch of the stream '{stream.name}'"
    called: list[Any] = []
    head = getattr(network, "head", None)
    watch = head.register_forward_hook(lambda *_: called.append(True)) if isinstance(head, nn.Module) else None
    training = {module: module.training for module in network.modules()}
    try:
        with own_code(what, network), torch.no_grad(), unchanged_randomness():
            return network.eval()(x), called
    finally:
        for module, mode in training.items():
            module.training = mode
        if watch is not None:
            watch.remove()


def _needs_head(network: nn.Module, config: ExperimentConfig) -> list[str]:
    """Return what replaces a model's head or freezes all but it."""
    found = {
        f"strategy.name={config.strategy.name}": STRATEGIES[config.strategy.name].is_head,
        f"model.head={config.model.head}": config.model.head != "linear",
        f"model.train_encoder={config.model.train_encoder}": config.model.train_encoder != "always",
        "a model of which nothing is to be trained": not learns(network),
    }
    return [reason for reason, needed in found.items() if needed]
