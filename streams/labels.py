"""Turns labels and domains, as files name them, into numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from streams.errors import StreamDataError


class Names:
    """Collects the names of classes or domains, a batch of samples after another, and numbers them in the end.

    Args:
        what: `label` or `domain`, for messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._numbers: dict[str, int] = {}
        self._found: list[np.ndarray] = []

    def add(self, values: Any, where: str) -> None:
        """Takes in the names of a batch.

        Args:
            values: `[b]`, text, whole numbers, or floats that are whole numbers.
            where: they come from, for messages.

        Raises:
            StreamDataError: one is missing, or is no name.
        """
        array = np.asarray(values)
        if array.ndim != 1:
            raise StreamDataError(f"{where}: has shape {list(array.shape)}: it must hold one {self._what} a sample")
        if array.dtype.kind == "f":
            whole = np.isfinite(array) & (array == np.rint(array))
            if not whole.all():
                row = int(np.argmin(whole))
                raise StreamDataError(f"{where}, row {row + 1}: {array[row]} is no {self._what}")
            array = array.astype(np.int64)
        elif array.dtype.kind not in "iubUOT":
            raise StreamDataError(f"{where}: holds {array.dtype}, which is no {self._what}")
        unique, inverse = np.unique(array.astype(str), return_inverse=True)
        texts = [str(text).strip() for text in unique]
        if "" in texts:
            row = int(np.argmax(inverse == texts.index("")))
            raise StreamDataError(f"{where}, row {row + 1}: the {self._what} is missing")
        numbers = [self._numbers.setdefault(text, len(self._numbers)) for text in texts]
        self._found.append(np.asarray(numbers, dtype=np.int32)[inverse])

    def numbered(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """Returns the number of each sample `[n]` int64, and the sorted names that the numbers stand for.

        Names that are all whole numbers are sorted as numbers.
        """
        whole = all(re.fullmatch(r"[+-]?\d+", name) for name in self._numbers)
        order = sorted(self._numbers, key=int if whole else str)
        position = np.empty(len(order), dtype=np.int64)
        for number, name in enumerate(order):
            position[self._numbers[name]] = number
        return position[np.concatenate(self._found)], tuple(order)


def renamed(names: Sequence[str], given: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names of the classes: those that the option `class_names` gives, or the labels themselves.

    Raises:
        StreamDataError: another number of names than classes.
    """
    if given is None:
        return tuple(names)
    if len(given) != len(names):
        raise StreamDataError(f"class_names: {len(given)} names, and the data has {len(names)} classes")
    return tuple(given)
