"""All samples of a stream, held once and read one by one or by whole batches of rows."""

from __future__ import annotations

import hashlib
import mmap
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from streams.files import sha256_of

if TYPE_CHECKING:
    from avalanche.benchmarks.utils import AvalancheDataset


READ = 256  # samples that are read at once, to look at all of them


class Samples(Dataset[Any], ABC):
    """All samples of a stream; the row of a sample is its index here.

    Attributes:
        targets: `[n]`; `[n, T]` where every token may have a target; `[n, V]` where a vector is to be told.
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

    def sha256(self) -> str:
        """Returns a checksum of all inputs, in their order."""
        digest = hashlib.sha256()
        for rows in torch.arange(len(self)).split(READ):
            digest.update(self.gather(rows).numpy().tobytes())
        return digest.hexdigest()


class TensorSamples(Samples):
    """Images or vectors of a stream, and their labels; the row of a sample is its index here.

    Avalanche reads it sample by sample (`__getitem__`); a training loop that has the rows of a batch (`rows_of`) reads
    the same values with one `gather`.

    Args:
        inputs: images `[n, C, H, W]` or vectors `[n, F]`; uint8, float16 or float32. They may lie in a file that is
            mapped into memory, of which only the rows that are asked for are read.
        targets: `[n]`, labels as the model sees them.
        divisor: stored values are divided by it when read, so that images lie in 0 to 1.

    Raises:
        ValueError: shapes or types do not fit.
    """

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor, *, divisor: float = 1.0) -> None:
        if inputs.ndim not in (2, 4) or targets.shape != inputs.shape[:1]:
            raise ValueError(
                f"inputs must be [n, C, H, W] or [n, F] and targets [n], got {tuple(inputs.shape)} and "
                f"{tuple(targets.shape)}"
            )
        if inputs.dtype not in (torch.uint8, torch.float16, torch.float32):
            raise ValueError(f"inputs must be uint8, float16 or float32, got {inputs.dtype}")
        self.inputs = inputs
        self.targets = targets.long()
        self.divisor = divisor

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """`(C, H, W)` of images, `(F,)` of vectors."""
        return tuple(self.inputs.shape[1:])

    @property
    def sample_bytes(self) -> int:
        """Bytes that one sample takes as it is stored."""
        return self.inputs[0].nbytes

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self._scaled(self.inputs[row]), int(self.targets[row])

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the inputs of `rows` `[b]` as float32 `[b, ...]`, bit for bit what `__getitem__` gives."""
        return self._scaled(self.inputs.index_select(0, rows))  # copies whole rows: twice as fast as inputs[rows]

    def sha256(self) -> str:
        """Returns a checksum of all inputs as they are stored, and of what they are divided by."""
        digest = hashlib.sha256(f"{self.inputs.dtype} {list(self.inputs.shape)} {self.divisor}".encode())
        for part in self.inputs.split(READ):
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    def _scaled(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.to(torch.float32) / self.divisor


class VectorSamples(Samples):
    """Vectors of a stream, and the vector that is to be told of each; the row of a sample is its index here.

    Args:
        inputs: `[n, F]` float32.
        targets: `[n, V]` float32.

    Raises:
        ValueError: shapes or types do not fit.
    """

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        if inputs.ndim != 2 or targets.ndim != 2 or len(inputs) != len(targets):
            raise ValueError(
                f"inputs must be [n, F] and targets [n, V], got {tuple(inputs.shape)} and {tuple(targets.shape)}"
            )
        if inputs.dtype != torch.float32 or targets.dtype != torch.float32:
            raise ValueError(f"inputs and targets must be float32, got {inputs.dtype} and {targets.dtype}")
        self.inputs = inputs
        self.targets = targets

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """`(F,)`."""
        return tuple(self.inputs.shape[1:])

    @property
    def sample_bytes(self) -> int:
        """Bytes that one sample takes as it is stored, with its target."""
        return self.inputs[0].nbytes + self.targets[0].nbytes

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[row], self.targets[row]

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the inputs of `rows` `[b]`, `[b, F]`."""
        return self.inputs.index_select(0, rows)


class MappedSamples(TensorSamples):
    """Samples in a file that is mapped into memory, which may be larger than that.

    The system is told that rows are read in no order, and which ones a batch needs before they are read. Left alone it
    would read ahead of every row, 8 MiB with some disks, or one page after another.

    Args:
        inputs: `[n, ...]`, mapped.
        targets: see `TensorSamples`.
        divisor: see `TensorSamples`.
    """

    def __init__(self, inputs: np.memmap, targets: torch.Tensor, *, divisor: float = 1.0) -> None:
        super().__init__(tensor_of(inputs), targets, divisor=divisor)
        self._file: mmap.mmap = inputs._mmap  # type: ignore[attr-defined]
        self._start = inputs.ctypes.data - np.frombuffer(self._file, dtype=np.uint8).ctypes.data
        self._file.madvise(mmap.MADV_RANDOM)
        self._path = None if inputs.filename is None else Path(inputs.filename)

    def sha256(self) -> str:
        """Returns a checksum of the file and of what it means: read in its order, which the mapping is not."""
        if self._path is None:
            return super().sha256()
        what = f"{self.inputs.dtype} {list(self.inputs.shape)} {self.divisor} {self._start} {sha256_of(self._path)}"
        return hashlib.sha256(what.encode()).hexdigest()

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the inputs of `rows` `[b]`, see `TensorSamples.gather`."""
        size = self.sample_bytes
        for row in rows.tolist():
            start = self._start + row * size
            page = start - start % mmap.PAGESIZE
            self._file.madvise(mmap.MADV_WILLNEED, page, start + size - page)
        return super().gather(rows)


def named_inputs(shape: Sequence[int]) -> str:
    """Returns what samples of a `sample_shape` are: `images`, `vectors` or `texts`."""
    return {3: "images", 1: "vectors", 0: "texts"}[len(shape)]


def samples_of(inputs: np.ndarray, targets: torch.Tensor, *, divisor: float) -> TensorSamples:
    """Returns samples over an array `[n, ...]`, which may be read-only, as mapped files and shared memory are."""
    if isinstance(inputs, np.memmap) and isinstance(inputs._mmap, mmap.mmap):  # type: ignore[attr-defined]
        return MappedSamples(inputs, targets, divisor=divisor)
    return TensorSamples(tensor_of(inputs), targets, divisor=divisor)


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """Returns a tensor over an array that is only read: it may lie in a mapped file or in shared memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def rows_of(dataset: AvalancheDataset) -> torch.Tensor:
    """Returns the rows in the stream's `TensorSamples` of a dataset's samples, `[len(dataset)]` int64, in its order.

    The dataset may be an experience's or anything that Avalanche's `subset` and `concat` made of those, such as a
    replay buffer. Costs about a microsecond a sample: call it once per dataset, not once per batch.
    """
    if len(dataset) == 0:
        return torch.empty(0, dtype=torch.int64)  # an empty buffer carries no attributes
    return torch.from_numpy(np.fromiter(dataset.rows, dtype=np.int64, count=len(dataset)))
