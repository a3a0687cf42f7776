"""Avalanche's naive, cumulative and joint training, for batches of any size."""

from __future__ import annotations

from typing import Any

from avalanche.benchmarks.utils.data_loader import SingleDatasetDataLoader
from avalanche.training import supervised


class _AnyBatchSize:
    """Lets a batch be smaller than the number of tasks that the data has.

    Avalanche takes as many samples of each task into a batch as of another, and asserts that there is one of each. In a
    smaller batch samples of all tasks come as they are shuffled, each once in an epoch.
    """

    adapted_dataset: Any
    train_mb_size: int
    dataloader: Any
    _obtain_common_dataloader_parameters: Any

    def make_train_dataloader(self, shuffle: bool = True, **kwargs: Any) -> None:
        """Make the loader of an experience."""
        if len(self.adapted_dataset.targets_task_labels.uniques) <= self.train_mb_size:
            super().make_train_dataloader(shuffle=shuffle, **kwargs)  # type: ignore[misc]
            return
        options = self._obtain_common_dataloader_parameters(batch_size=self.train_mb_size, shuffle=shuffle)
        self.dataloader = SingleDatasetDataLoader(self.adapted_dataset, **options)


class Naive(_AnyBatchSize, supervised.Naive):
    """Fine-tuning on each experience in turn; plugins may train it on data of several tasks at once."""


class Cumulative(_AnyBatchSize, supervised.Cumulative):
    """Training on all data so far."""


class JointTraining(_AnyBatchSize, supervised.JointTraining):
    """Training on the whole stream at once."""
