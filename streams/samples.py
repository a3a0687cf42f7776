"""All samples of a stream, held in memory once and read one by one or by whole batches of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from avalanche.benchmarks.utils import AvalancheDataset


class Samples(Dataset[Any], ABC):
    """All samples of a stream; the row of a sample is its index here.

    Attributes:
        targets: `[n]`, or `[n, T]` where every token may have a target.
    """

    targets: torch.Tensor

    @property
    @abstractmethod
    def sample_bytes(self) -> int:
        """Bytes that one sample takes as it is stored."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the inputs of `rows` `[b]`, as the model takes them."""


class TensorSamples(Samples):
    """Images and labels of a stream; the row of a sample is its index here.

    Avalanche reads it sample by sample (`__getitem__`); a training loop that has the rows of a batch (`rows_of`) reads
    the same values with one `gather`.

    Args:
        images: `[n, C, H, W]`, uint8 or float32.
        targets: `[n]`, labels as the model sees them.
        divisor: stored values are divided by it when read, so that images lie in 0..1.

    Raises:
        ValueError: shapes or types do not fit.
    """

    def __init__(self, images: torch.Tensor, targets: torch.Tensor, *, divisor: float = 1.0) -> None:
        if images.ndim != 4 or targets.shape != images.shape[:1]:
            raise ValueError(
                f"images must be [n, C, H, W] and targets [n], got {tuple(images.shape)} and {tuple(targets.shape)}"
            )
        if images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"images must be uint8 or float32, got {images.dtype}")
        self.images = images
        self.targets = targets.long()
        self.divisor = divisor

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)`."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def sample_bytes(self) -> int:
        """Bytes that one image takes as it is stored."""
        return self.images[0].nbytes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self._scaled(self.images[row]), int(self.targets[row])

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the images of `rows` `[b]` as float32 `[b, C, H, W]`, bit for bit what `__getitem__` gives."""
        return self._scaled(self.images.index_select(0, rows))  # copies whole rows: twice as fast as images[rows]

    def _scaled(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(torch.float32) / self.divisor


def rows_of(dataset: AvalancheDataset) -> torch.Tensor:
    """Returns the rows in the stream's `TensorSamples` of a dataset's samples, `[len(dataset)]` int64, in its order.

    The dataset may be an experience's or anything that Avalanche's `subset` and `concat` made of those, such as a
    replay buffer. Costs about a microsecond a sample: call it once per dataset, not once per batch.
    """
    if len(dataset) == 0:
        return torch.empty(0, dtype=torch.int64)  # an empty buffer carries no attributes
    return torch.from_numpy(np.fromiter(dataset.rows, dtype=np.int64, count=len(dataset)))
