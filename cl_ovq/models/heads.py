"""Heads that do more than map features to logits: with task labels, or with a memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn


class RememberingHead(nn.Module):
    """A memory head in the place of a linear one, beside which a linear head may train the encoder.

    In evaluation the memory answers. In training the linear head does, whose loss gives the encoder its gradient; where
    nothing is left to train (`linear` is None), training has logits of zero, since reading a memory between two writes
    costs more than writing it. A forward pass's features are kept in `observed`, for the plugin that writes them.

    Args:
        memory: learns from features and targets (`observe`), and maps features to log-probabilities: a `MemoryHead`, or
            a `GradientFreeHead`.
        linear: maps features to logits; None for a memory alone.
    """

    def __init__(self, memory: Any, linear: nn.Module | None) -> None:
        super().__init__()
        self.memory = memory
        self.linear = linear
        self.observed: Tensor | None = None
        # Avalanche takes the gradient of every loss: this gives a loss without any other parameter one of zero.
        self.anchor = nn.Parameter(torch.zeros(())) if linear is None else None

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[B, F]` to logits or log-probabilities `[B, n_classes]`."""
        if not self.training:
            return self.memory(features)
        self.observed = features.detach()
        if self.linear is not None:
            return self.linear(features)
        assert self.anchor is not None
        return 0 * self.anchor * features.new_ones(len(features), self.memory.classes)


class TaskMaskedModel(MultiTaskModule):
    """A model whose logits are confined to the classes of the sample's task (task-incremental streams).

    One output per class of the stream, with those of other tasks at minus infinity, is the same function as one head
    per task; but its parameters are there from the start, so no optimizer has to be rebuilt when a task arrives.

    Args:
        model: maps inputs to logits over all classes.
        classes_per_task: the classes of each task.
    """

    def __init__(self, model: nn.Module, classes_per_task: Sequence[Sequence[int]], n_classes: int) -> None:
        super().__init__()
        self.model = model
        hidden = torch.ones(len(classes_per_task), n_classes, dtype=torch.bool)
        for task, classes in enumerate(classes_per_task):
            hidden[task, list(classes)] = False
        self.register_buffer("hidden", hidden, persistent=False)

    def forward(self, x: Tensor, task_labels: Tensor | int) -> Tensor:
        """Map inputs `[B, ...]` and task labels `[B]` to logits `[B, n_classes]`."""
        labels = torch.as_tensor(task_labels, device=x.device).expand(len(x))
        hidden: Tensor = self.hidden
        return self.model(x).masked_fill(hidden[labels], -torch.inf)

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Map inputs of one task to logits."""
        return self(x, task_label)


def unwrap(model: nn.Module) -> Any:
    """Return the network inside a task-masked model, which takes no task labels; any other model as it is."""
    return model.model if isinstance(model, TaskMaskedModel) else model
