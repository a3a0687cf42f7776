"""Whole batches as tensors, in place of Avalanche's sample-by-sample data path.

Avalanche's loaders decide which samples make a batch; its datasets then fetch them one at a time through several layers
of Python. Here the decision stays Avalanche's, sampler and random numbers included, and the fetching is one indexing
operation per batch. `cl-ovq bench training` measures both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from streams import TensorSamples, rows_of

Batch = list[Tensor]


class _BatchedView(Dataset[Any]):
    """Several Avalanche datasets end to end, fetched by lists of indices."""

    def __init__(self, datasets: Sequence[AvalancheDataset], samples: TensorSamples) -> None:
        self.samples = samples
        self.rows = torch.cat([rows_of(dataset) for dataset in datasets])
        self.last = self.rows[:0]
        self.tasks = torch.cat([torch.tensor(dataset.targets_task_labels[:]) for dataset in datasets])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return inputs, targets and task labels of a batch; PyTorch's loader calls this where it exists."""
        index = torch.tensor(indices)
        rows = self.last = self.rows[index]
        return [self.samples.gather(rows), self.samples.targets[rows], self.tasks[index]]


class BatchedLoader:
    """The batches of an Avalanche loader, fetched at once.

    Args:
        loader: Avalanche's loader over datasets of one stream.
        samples: that stream's samples.
    """

    def __init__(self, loader: MultiDatasetDataLoader, samples: TensorSamples) -> None:
        self.loader = loader
        self.view = _BatchedView(loader.datasets, samples)

    @property
    def rows(self) -> Tensor:
        """Rows in the stream's samples of the batch that was given last."""
        return self.view.last

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        # The sampler is made anew for every epoch, as Avalanche does it; it is the only private name used here.
        sampler = self.loader._get_loader().batch_sampler
        return iter(DataLoader(self.view, batch_sampler=sampler, collate_fn=_as_it_is))


class BatchedData(SupervisedPlugin):
    """Replaces a strategy's loaders by batched ones. It must come after the plugins that build loaders (replay).

    Args:
        samples: the stream's samples.
    """

    def __init__(self, samples: TensorSamples) -> None:
        super().__init__()
        self.samples = samples

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Batch the training data of an experience."""
        strategy.dataloader = BatchedLoader(strategy.dataloader, self.samples)

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Batch the evaluation data of an experience."""
        strategy.dataloader = BatchedLoader(strategy.dataloader, self.samples)


def _as_it_is(batch: Batch) -> Batch:
    return batch
