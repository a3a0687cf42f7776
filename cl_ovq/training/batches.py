"""Whole batches as tensors, in place of Avalanche's sample-by-sample data path.

Avalanche's loaders decide which samples make a batch; its datasets then fetch them one at a time through several layers
of Python. Here the decision stays Avalanche's, sampler and random numbers included, and the fetching is one indexing
operation per batch. `cl-ovq bench training` measures both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

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

    Attributes:
        rows: rows in the stream's samples of the batch that was given last; a strategy that appends samples to the
            batch appends their rows here.
        order: rows and task labels of the epoch's batches, the last one first; a new list for every epoch.
        plan: those of them that are still to come.
    """

    def __init__(self, loader: MultiDatasetDataLoader, samples: Samples) -> None:
        self.loader = loader
        self.samples = samples
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
        return len(self)

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
    """

    def __init__(self, samples: Samples) -> None:
        super().__init__()
        self.samples = samples

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Batch the training data of an experience."""
        strategy.dataloader = BatchedLoader(strategy.dataloader, self.samples)

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Batch the evaluation data of an experience."""
        strategy.dataloader = BatchedLoader(strategy.dataloader, self.samples)
