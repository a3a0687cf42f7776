"""Whole batches as tensors, in place of Avalanche's sample-by-sample data path.

Avalanche's loaders decide which samples make a batch; its datasets then fetch them one at a time through several layers
of Python. Here the decision stays Avalanche's, sampler and random numbers included, and the fetching is one indexing
operation per batch. `cl-ovq bench training` measures both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cl_ovq.training.criteria import count_targets
from streams import Samples, rows_of

Batch = list[Tensor]


class _Indices(Dataset[Any]):
    """Gives back the indices that it is asked for."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, indices: list[int]) -> list[int]:
        """Return the indices of a batch; PyTorch's loader calls this where it exists."""
        return indices


class BatchedLoader:
    """The batches of an Avalanche loader, fetched at once.

    The batches of an epoch are decided when it begins, all of them, so that a run that is taken up in the middle of an
    epoch goes on with the same ones.

    Args:
        loader: Avalanche's loader over datasets of one stream.
        samples: that stream's samples.
        accumulation: batches whose gradients make a step of the optimizer.

    Attributes:
        rows: rows in the stream's samples of the batch that was given last; a strategy that appends samples to the
            batch appends their rows here.
        order: rows and task labels of the epoch's batches, the last one first; a new list for every epoch.
        plan: those of them that are still to come.
    """

    def __init__(self, loader: MultiDatasetDataLoader, samples: Samples, accumulation: int = 1) -> None:
        self.loader = loader
        self.samples = samples
        self.accumulation = accumulation
        self.all_rows = torch.cat([rows_of(dataset) for dataset in loader.datasets])
        self.all_tasks = torch.cat([torch.tensor(dataset.targets_task_labels[:]) for dataset in loader.datasets])
        self.rows = self.all_rows[:0]
        self.order: list[tuple[Tensor, Tensor]] = []
        self.plan: list[tuple[Tensor, Tensor]] = []
        self.resumed = False

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def steps(self) -> int:
        """Steps of the optimizer in an epoch."""
        return math.ceil(len(self) / self.accumulation)

    @property
    def _number(self) -> int:
        """The batch that was given last, counted from 0."""
        return len(self.order) - len(self.plan) - 1

    @property
    def begins_step(self) -> bool:
        """Whether the batch that was given last is the first of its step."""
        return self._number % self.accumulation == 0

    @property
    def ends_step(self) -> bool:
        """Whether it is the last of its step."""
        return not self.plan or (self._number + 1) % self.accumulation == 0

    @property
    def is_full(self) -> bool:
        """Whether it is as large as the epoch's first."""
        return len(self.order[-1 - self._number][0]) == len(self.order[-1][0])

    @property
    def share(self) -> float:
        """Share of its step's targets that it has."""
        if self.accumulation == 1:
            return 1.0
        first = self._number - self._number % self.accumulation
        end = len(self.order) - first  # the order begins with the last batch
        step = self.order[max(0, end - self.accumulation) : end][::-1]
        targets = [count_targets(self.samples.targets[rows]) for rows, _ in step]
        return targets[self._number - first] / max(1, sum(targets))

    def __iter__(self) -> Iterator[Batch]:
        if not self.resumed:
            # The sampler is made anew for every epoch, as Avalanche does it; it is the only private name used here.
            sampler = self.loader._get_loader().batch_sampler
            indices = DataLoader(_Indices(len(self.all_rows)), batch_sampler=sampler, collate_fn=torch.tensor)
            self.order = [(self.all_rows[batch], self.all_tasks[batch]) for batch in indices][::-1]
            self.plan = self.order.copy()
        self.resumed = False
        while self.plan:
            self.rows, tasks = self.plan.pop()
            yield [self.samples.gather(self.rows), self.samples.targets[self.rows], tasks]

    def resume(self, order: list[tuple[Tensor, Tensor]], left: int) -> None:
        """Let the next epoch be the last batches of one that was begun.

        Args:
            order: of that epoch.
            left: number of its batches that are still to come.
        """
        self.order, self.plan, self.resumed = order, order[:left], True


class BatchedData(SupervisedPlugin):
    """Replaces a strategy's loaders by batched ones. It must come after the plugins that build loaders (replay).

    Args:
        samples: the stream's samples.
        accumulation: batches whose gradients make a step of the optimizer.
    """

    def __init__(self, samples: Samples, accumulation: int = 1) -> None:
        super().__init__()
        self.samples = samples
        self.accumulation = accumulation

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Batch the training data of an experience."""
        strategy.dataloader = BatchedLoader(strategy.dataloader, self.samples, self.accumulation)

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Batch the evaluation data of an experience."""
        strategy.dataloader = BatchedLoader(strategy.dataloader, self.samples)
