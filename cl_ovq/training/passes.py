"""The strategy's own pass over the batch, and the passes that methods make for their own ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn
from torch.func import functional_call

from cl_ovq.models.heads import RememberingHead

Tensors = dict[str, Tensor]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model as for evaluation, without dropout, but with the logits that training uses.

    A memory head beside a linear one answers in evaluation, and methods that constrain weights need the linear one.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for module in modes:
        if isinstance(module, RememberingHead):
            module.training = True
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def logits_of(model: nn.Module, x: Tensor, tasks: Tensor, weights: Tensors | None = None) -> Tensor:
    """Return the logits `[B, C]` of inputs `[B, ...]` of tasks `[B]`, with other weights if given (by name)."""
    inputs = (x, tasks) if isinstance(model, MultiTaskModule) else (x,)
    return model(*inputs) if weights is None else functional_call(model, weights, inputs)


def trained(model: nn.Module) -> Tensors:
    """Return the parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradient(model: nn.Module, loss: Tensor) -> Tensors:
    """Return the gradient of a loss by the name of the parameter, zero where it does not depend on one."""
    weights = trained(model)
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if part is None else part
        for (name, weight), part in zip(weights.items(), found, strict=True)
    }


def append_rows(strategy: Any, rows: Tensor) -> None:
    """Add the rows of samples that a method appends to the batch, so that plugins know what the batch holds."""
    if hasattr(strategy.dataloader, "rows"):  # not so with Avalanche's own loaders
        strategy.dataloader.rows = torch.cat([strategy.dataloader.rows, rows])


def step_ends(strategy: Any) -> bool:
    """Return whether a step of the optimizer ends with the present batch: not so where gradients are accumulated."""
    return getattr(strategy.dataloader, "ends_step", True)  # Avalanche's own loaders know of no such thing


def around_own_pass(strategy: Any, around: Callable[[], AbstractContextManager[None]]) -> None:
    """Enter a context around each pass that a strategy itself makes over a training batch, and around no other.

    Avalanche's hooks around that pass would not do: plugins that come earlier in the list are called between the hook
    of a later one and the pass, and may make passes of their own there.
    """
    forward = strategy.forward

    def watched() -> Any:
        if strategy.is_eval:
            return forward()
        with around():
            return forward()

    strategy.forward = watched
