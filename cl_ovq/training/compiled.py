"""Compiles a model's passes."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cl_ovq.errors import UserError, first_line
from cl_ovq.models.heads import RememberingHead, unwrap

# A limit would leave what comes after it uncompiled, which then depended on where a run was taken up.
UNLIMITED = {"recompile_limit": 2**20, "accumulated_recompile_limit": 2**20}


def compile_passes(strategy: Any) -> None:
    """Let a strategy make its own passes over training batches, and those of evaluation, by `torch.compile`.

    Each shape of a batch is compiled for itself, so that what a pass computes depends on nothing that came before it: a
    run that is taken up computes the same bits. For that to be few shapes, batches that are not full (the last of an
    epoch or of an evaluation) are computed as they are, as are passes that methods make for their own ends.

    The model itself stays as it is: its modules, its names, copies of it, and hooks on it know nothing of this. Of one
    with a memory in the place of its head the features are compiled: what a memory does depends on what it holds.

    Args:
        strategy: has no plugin yet that enters its passes.
    """
    # It says that there is no CUDA, where a GPU's driver is not.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    network = unwrap(strategy.model)
    part = "features" if any(isinstance(module, RememberingHead) for module in network.modules()) else "forward"
    compiled = torch.compile(getattr(network, part), dynamic=False)
    strategy.forward = partial(_forward, strategy, strategy.forward, network, {part: compiled})


def _forward(strategy: Any, forward: Any, network: nn.Module, compiled: dict[str, Any]) -> Tensor:
    """Make a strategy's own pass."""
    if not _is_full(strategy):
        outputs: Tensor = forward()
        return outputs
    vars(network).update(compiled)  # for this pass alone
    try:
        with torch._dynamo.config.patch(UNLIMITED):
            outputs = forward()
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = first_line(error) or type(error).__name__
        raise UserError(f"training.compile: the model cannot be compiled: {reason}: remove it") from error
    finally:
        for part in compiled:
            del vars(network)[part]
    return outputs


def _is_full(strategy: Any) -> bool:
    """Return whether a batch has the size that most have."""
    if strategy.is_eval:
        return len(strategy.mb_x) == strategy.eval_mb_size
    return bool(strategy.dataloader.is_full)
