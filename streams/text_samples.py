"""Texts of a stream: held as the bytes of all of them, one after the other, and read as strings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from streams.errors import StreamDataError
from streams.samples import READ, Samples

if TYPE_CHECKING:
    from streams.cache import Sink


class TextSamples(Samples):
    """Texts of a stream, and their labels; the row of a text is its index here.

    No model reads them as they are: an encoder makes features of them.

    Args:
        data: UTF-8 of all texts, uint8; it may lie in a file that is mapped into memory.
        offsets: `[n + 1]`, where each text begins in `data`, and where the last one ends.
        targets: `[n]`, labels as the model sees them.
    """

    sample_shape: tuple[int, ...] = ()

    def __init__(self, data: np.ndarray, offsets: np.ndarray, targets: torch.Tensor) -> None:
        self.data = data
        self.offsets = offsets
        self.targets = targets.long()

    @property
    def sample_bytes(self) -> int:
        """Bytes that one text takes on average, rounded up."""
        return -(-len(self.data) // max(1, len(self)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> tuple[str, int]:
        return self.texts(torch.tensor([row]))[0], int(self.targets[row])

    def texts(self, rows: torch.Tensor) -> list[str]:
        """Returns the texts of `rows` `[b]`."""
        return [self._bytes(row).tobytes().decode() for row in rows.tolist()]

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the bytes of the texts of `rows` `[b]`, uint8 `[b, L]`, shorter ones followed by zeros."""
        return pad_sequence([torch.tensor(self._bytes(row)) for row in rows.tolist()], batch_first=True)

    def sha256(self) -> str:
        """Returns a checksum of all texts, in their order."""
        digest = hashlib.sha256(np.ascontiguousarray(self.offsets, dtype=np.int64).tobytes())
        for first in range(0, len(self), READ):
            last = min(first + READ, len(self))
            digest.update(self.data[self.offsets[first] : self.offsets[last]].tobytes())
        return digest.hexdigest()

    def _bytes(self, row: int) -> np.ndarray:
        return self.data[self.offsets[row] : self.offsets[row + 1]]


class TextWriter:
    """Writes texts into a sink, and knows where each one begins.

    Args:
        sink: takes their bytes.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._ends = [np.zeros(1, dtype=np.int64)]
        self._total = 0
        self._rows: dict[str, int] = {}  # taken in from each place

    def write(self, texts: Sequence[str | None], where: str) -> None:
        """Appends texts.

        Args:
            texts: None and what is blank is missing.
            where: they come from, for messages; rows are counted through all calls from there.

        Raises:
            StreamDataError: naming the row of a text that is missing, or no Unicode.
        """
        encoded = []
        first = self._rows.get(where, 0) + 1
        self._rows[where] = first - 1 + len(texts)
        for row, text in enumerate(texts, start=first):
            if text is None or not text.strip():
                raise StreamDataError(f"{where}, row {row}: the text is missing")
            try:
                encoded.append(text.encode())
            except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can hold
                raise StreamDataError(f"{where}, row {row}: the text is not valid Unicode: {error.reason}") from error
        self._ends.append(self._total + np.cumsum([len(text) for text in encoded], dtype=np.int64))
        self._total += sum(map(len, encoded))
        self._sink.write(np.frombuffer(b"".join(encoded), dtype=np.uint8))

    @property
    def offsets(self) -> np.ndarray:
        """Where each text begins, and where the last one ends, `[n + 1]`."""
        return np.concatenate(self._ends)
