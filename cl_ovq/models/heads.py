"""Heads that use task labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn


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
