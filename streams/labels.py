"""Turns labels and domains, as files name them, into numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from streams.errors import StreamDataError

WHOLE = re.compile(r"[+-]?\d+")
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf(inity)?)", re.IGNORECASE)
MISSING = ("", "nan", "NaN")  # an empty cell, and what NumPy and pandas write for one


class Names:
    """Collects the names of classes or domains, a batch of samples after another, and numbers them in the end.

    Numbers are the same names whichever file they come from, as numbers or as text: `2.0` is `2`. Only where all names
    are numbers are they taken for such.

    Args:
        what: `label` or `domain`, for messages. A label with a fraction is refused: it is a value to be estimated.
        verbatim: whether names stay as they are, those of folders for example.
    """

    def __init__(self, what: str, *, verbatim: bool = False) -> None:
        self._what = what
        self._verbatim = verbatim
        self._numbers: dict[str, int] = {}
        self._places: list[str] = []  # where each name came first
        self._found: list[np.ndarray] = []
        self._rows: dict[str, int] = {}  # taken in from each place

    def add(self, values: Any, where: str) -> None:
        """Takes in the names of a batch.

        Args:
            values: `[b]`, text or numbers.
            where: they come from, for messages; rows are counted through all batches from there.

        Raises:
            StreamDataError: one is missing, or is no name.
        """
        array = np.asarray(values)
        if array.ndim != 1:
            raise StreamDataError(
                f"{where}: has shape {list(array.shape)}: it must contain one {self._what} per sample"
            )
        if array.dtype.kind not in "fiubUOT":
            raise StreamDataError(f"{where}: contains {array.dtype}, not a {self._what}")
        unique, first, inverse = np.unique(array.astype(str), return_index=True, return_inverse=True)
        before = self._rows.get(where, 0)
        self._rows[where] = before + len(array)
        numbers = np.empty(len(unique), dtype=np.int32)
        for index in first.argsort().tolist():  # as they come, for the first mistake to be the one that is told
            text, place = str(unique[index]).strip(), f"{where}, row {before + int(first[index]) + 1}"
            if text in MISSING and not self._verbatim:
                told = f": '{text}' means none" if text else ""
                raise StreamDataError(f"{place}: the {self._what} is missing{told}")
            if text not in self._numbers:
                self._numbers[text] = len(self._numbers)
                self._places.append(place)
            numbers[index] = self._numbers[text]
        self._found.append(numbers[inverse])

    def numbered(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """Returns the number of each sample `[n]` int64, and the sorted names that the numbers stand for.

        Names that are all numbers are sorted as numbers.

        Raises:
            StreamDataError: all are numbers, and one cannot be a label or a domain.
        """
        key: Callable[[str], Any] = str
        names = list(self._numbers)
        if all(WHOLE.fullmatch(name) for name in names):
            key = int
        elif not self._verbatim and all(NUMBER.fullmatch(name) for name in names):
            key = float
            names = [self._number(name, place) for name, place in zip(names, self._places, strict=True)]
        order = sorted(set(names), key=key)
        numbers = {name: number for number, name in enumerate(order)}
        position = np.array([numbers[name] for name in names], dtype=np.int64)
        return position[np.concatenate(self._found)], tuple(order)

    def _number(self, text: str, place: str) -> str:
        """Returns the one name of a number, however it was written."""
        if WHOLE.fullmatch(text):
            return text
        value = float(text)
        if math.isfinite(value) and value == int(value):
            return str(int(value))
        if math.isinf(value) or self._what == "label":
            needed = ": a class is a name or an integer" if self._what == "label" else ""
            raise StreamDataError(f"{place}: {text} is not a {self._what}{needed}")
        return str(value)


def renamed(names: Sequence[str], given: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names of the classes: those that the option `class_names` gives, or the labels themselves.

    Raises:
        StreamDataError: another number of names than classes.
    """
    if given is None:
        return tuple(names)
    if len(given) != len(names):
        raise StreamDataError(f"class_names: {len(given)} names, but the data has {len(names)} classes")
    return tuple(given)
