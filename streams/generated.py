"""Generated sequences of which no two are the same, so that train, validation and test are disjoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from streams.counter_rng import Draws
from streams.errors import StreamDataError
from streams.sequences import SequenceSamples


@dataclass(frozen=True, eq=False)
class Generated:
    """Inputs, targets and distances `[n, T]` int32, see `SequenceSamples`; and what a token is called."""

    inputs: np.ndarray
    targets: np.ndarray
    distances: np.ndarray
    name: Callable[[int], str]

    def samples(self, rows: slice) -> SequenceSamples:
        """Returns some of them as samples."""
        return SequenceSamples(
            self.inputs[rows], self.targets[rows].astype("int64"), names=self.name, distances=self.distances[rows]
        )

    def parts(self, sizes: Mapping[str, int]) -> dict[str, SequenceSamples]:
        """Returns so many of them for each name, one after the other."""
        ends = np.cumsum([0, *sizes.values()]).tolist()
        return {name: self.samples(slice(*ends[i : i + 2])) for i, name in enumerate(sizes)}


def distinct(draw: Callable[[int, Draws], Generated], count: int, hint: str, *purpose: str | int) -> Generated:
    """Generates so many sequences.

    Args:
        draw: generates sequences, given how many.
        count: how many are wanted.
        hint: which sequences they are, and what would make more of them.
        purpose: of the draws.

    Raises:
        StreamDataError: there are not so many.
    """
    draws = Draws(*purpose)
    found = draw(count, draws)
    for _ in range(20):
        _, first = np.unique(found.inputs, axis=0, return_index=True)
        if len(first) == count:
            return found
        more = draw(count - len(first), draws)
        kept = np.sort(first)
        found = Generated(
            np.concatenate((found.inputs[kept], more.inputs)),
            np.concatenate((found.targets[kept], more.targets)),
            np.concatenate((found.distances[kept], more.distances)),
            found.name,
        )
    raise StreamDataError(f"train, validation and test: there are fewer than about {count} different sequences: {hint}")
