"""Where the growth of a dictionary comes to rest, and where it sets in again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cl_ovq.evaluation.dictionaries import DictionaryRecord


@dataclass(frozen=True)
class Plateau:
    """A stretch of training in which a dictionary hardly grows.

    Attributes:
        start_tokens: tokens written when it begins.
        start_step: training steps done then.
        end_tokens: tokens written when growth sets in again; None if it lasts to the end.
        end_step: training steps done then; None likewise.
    """

    start_tokens: float
    start_step: int
    end_tokens: float | None
    end_step: int | None


def cumulative(tokens: Sequence[float]) -> list[float]:
    """Return running totals of a counter that starts again at every reset."""
    base, last, totals = 0.0, 0.0, []
    for count in tokens:
        if count < last:
            base += last
        totals.append(base + count)
        last = count
    return totals


def growth_plateaus(records: Sequence[DictionaryRecord]) -> list[Plateau]:
    """Return the plateaus of a run; tokens are counted from its beginning, whatever was emptied in between."""
    tokens = cumulative([record.tokens for record in records])
    return find_plateaus(tokens, [record.step for record in records], [record.size for record in records])


def plateau_tokens(records: Sequence[DictionaryRecord]) -> float | None:
    """Return the tokens written when growth first came to rest; all tokens if it never did, None without records."""
    if not records:
        return None
    plateaus = growth_plateaus(records)
    return plateaus[0].start_tokens if plateaus else cumulative([record.tokens for record in records])[-1]


def find_plateaus(
    tokens: Sequence[float],
    steps: Sequence[int],
    sizes: Sequence[float],
    *,
    window: float = 0.1,
    tolerance: float = 0.02,
) -> list[Plateau]:
    """Find the plateaus of a growth curve.

    A dictionary is at rest at a moment if over the `window` that follows it grows by less than `tolerance` of its size
    then. A plateau is a longest run of moments at rest, and ends where the last of their windows does. Near the end of
    the curve, where less than a window follows, growth to the end counts; a plateau that spans less than half a window
    is not reported, so that two flat records do not make one.

    Args:
        tokens: tokens written, rising.
        steps: training steps done, for each.
        sizes: slots in use, for each.
        window: share of all tokens over which growth is looked at.
        tolerance: share of its size by which a dictionary at rest may grow in a window.

    Returns:
        The plateaus in order.
    """
    at, size = np.asarray(tokens, dtype=float), np.asarray(sizes, dtype=float)
    if len(at) < 2 or at[-1] <= at[0]:
        return []
    span = window * (at[-1] - at[0])
    later = np.minimum(np.searchsorted(at, at + span), len(at) - 1)
    rest = (size > 0) & (size[later] - size < tolerance * size)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], rest, [False])).astype(int)))
    found = []
    for begin, end in zip(edges[::2], edges[1::2] - 1, strict=True):
        last = later[end]
        if at[last] - at[begin] < span / 2:
            continue
        open_end = last == len(at) - 1
        found.append(
            Plateau(
                start_tokens=float(at[begin]),
                start_step=int(steps[begin]),
                end_tokens=None if open_end else float(at[last]),
                end_step=None if open_end else int(steps[last]),
            )
        )
    return found
