"""Memories of past samples: Avalanche decides what they keep; here they get their size, and batches are drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.storage_policy import (
    ClassBalancedBuffer,
    ExemplarsBuffer,
    ExperienceBalancedBuffer,
    ReservoirSamplingBuffer,
)
from torch import Tensor

from streams import Samples, rows_of

POLICIES: dict[str, type[ExemplarsBuffer]] = {
    "class_balanced": ClassBalancedBuffer,
    "experience_balanced": ExperienceBalancedBuffer,
    "reservoir": ReservoirSamplingBuffer,
}


def tasks_of(dataset: AvalancheDataset) -> Tensor:
    """Return the task labels of a dataset's samples, `[len(dataset)]` int64."""
    if len(dataset) == 0:
        return torch.empty(0, dtype=torch.int64)
    return torch.tensor(dataset.targets_task_labels[:])


class Replay(ReplayPlugin):
    """Avalanche's replay: every step adds past samples to the new ones (Chaudhry et al. 2019).

    Args:
        policy: decides which samples are kept.
        batch_size: past samples of a step; as many as new ones if None.
    """

    STATE = ("storage_policy",)  # of a checkpoint

    def __init__(self, policy: ExemplarsBuffer, batch_size: int | None) -> None:
        super().__init__(mem_size=policy.max_size, batch_size_mem=batch_size, storage_policy=policy)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Take samples of the experience into the buffer."""
        # What Avalanche's own plugin does by a call that it has deprecated, with a warning at every experience.
        self.storage_policy.post_adapt(strategy, strategy.experience)


class MemoryBatch(NamedTuple):
    """Past samples: inputs `[B, ...]`, targets, task labels, rows in the stream and positions in the memory, `[B]`."""

    x: Tensor
    y: Tensor
    tasks: Tensor
    rows: Tensor
    positions: Tensor


class Memory:
    """Past samples that an Avalanche policy keeps, drawn as whole batches in an order that is shuffled again and again.

    Avalanche's methods draw sample by sample from loaders, whose position nobody can save, and some of them draw
    nothing at all, silently, where the memory is smaller than the batch.

    Args:
        policy: decides which samples are kept.
        samples: the stream's samples.
    """

    STATE = ("storage_policy", "rows", "tasks", "order")  # of a checkpoint

    def __init__(self, policy: ExemplarsBuffer, samples: Samples) -> None:
        self.storage_policy = policy
        self.samples = samples
        self.rows = self.tasks = self.order = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, experience: Any) -> None:
        """Let the policy choose among the samples kept and those of an experience."""
        self.storage_policy.post_adapt(None, experience)
        buffer = self.storage_policy.buffer
        self.rows, self.tasks = rows_of(buffer), tasks_of(buffer)
        self.order = self.order[:0]

    def draw(self, count: int, device: torch.device) -> MemoryBatch:
        """Return the next samples of the shuffled memory; no more than it holds, each once."""
        count = min(count, len(self))
        if len(self.order) < count:
            rest = torch.randperm(len(self))
            again = torch.isin(rest, self.order)  # a sample must not come twice in one batch
            self.order = torch.cat([self.order, rest[~again], rest[again]])
        positions, self.order = self.order[:count], self.order[count:]
        return self.at(positions, device)

    def at(self, positions: Tensor, device: torch.device) -> MemoryBatch:
        """Return the samples at positions `[B]` of the memory."""
        rows, tasks = self.rows[positions], self.tasks[positions]
        x, y = self.samples.gather(rows), self.samples.targets[rows]
        return MemoryBatch(x.to(device), y.to(device), tasks.to(device), rows, positions)
