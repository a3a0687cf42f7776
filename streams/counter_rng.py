"""Random integers that are the same on every machine and for every version of every library.

NumPy's and PyTorch's generators promise that for some of their methods only. Here a number is a hash of a counter
(SplitMix64: Steele, Lea, Flood 2014), computed in integers, and orders are sorted numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


class Draws:
    """A sequence of random numbers.

    Args:
        purpose: words and numbers that name the sequence; different names give unrelated sequences.
    """

    def __init__(self, *purpose: str | int) -> None:
        digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
        self._start = np.uint64(int.from_bytes(digest[:8]))
        self._drawn = 0

    def skip(self, count: int) -> None:
        """Goes on as if so many 64-bit numbers had been drawn."""
        self._drawn += count

    def bits(self, *shape: int) -> np.ndarray:
        """Draws 64-bit numbers, uint64 of the given shape."""
        count = int(np.prod(shape, dtype=np.int64))
        counter = np.arange(self._drawn + 1, self._drawn + count + 1, dtype=np.uint64)
        self._drawn += count
        z = self._start + counter * _STEP  # uint64 wraps around, as meant
        z = (z ^ (z >> np.uint64(30))) * _FIRST
        z = (z ^ (z >> np.uint64(27))) * _SECOND
        return (z ^ (z >> np.uint64(31))).reshape(shape)

    def below(self, bound: int | np.ndarray, *shape: int) -> np.ndarray:
        """Draws whole numbers from 0 to `bound - 1`, int64; `bound` at most 2^32, broadcast to the shape.

        A number is favoured over another by at most `bound / 2^32`.
        """
        high = self.bits(*shape) >> np.uint64(32)
        return ((high * np.asarray(bound, dtype=np.uint64)) >> np.uint64(32)).astype(np.int64)

    def orders(self, count: int, size: int) -> np.ndarray:
        """Draws `count` permutations of `range(size)`, `[count, size]` int64."""
        return np.argsort(self.bits(count, size), axis=1, kind="stable")
