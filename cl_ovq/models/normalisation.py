"""What of a model is no weight of a layer: running statistics of batch norm, and weights of one dimension."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the running means and variances of a model's batch norms, with their counters, by name.

    They are buffers, which a pass in training mode changes, and no gradient does.
    """
    return {
        f"{name}.{part}" if name else part: buffer
        for name, module in model.named_modules()
        if isinstance(module, _NormBase)
        for part, buffer in module.named_buffers(recurse=False)
    }


def count_statistics(model: nn.Module) -> int:
    """Return how many numbers the running means and variances of a model are."""
    return sum(buffer.numel() for buffer in running_statistics(model).values() if buffer.is_floating_point())


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return a model's parameters in two groups for an optimizer: those of one dimension or none do not decay.

    These are the weights of norms (batch norm, layer norm), biases, and single numbers such as temperatures.
    """
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
