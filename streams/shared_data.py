"""Data sets that somebody else has read already: handed over in memory, and not read again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from streams.split import LabelledData

Arguments = ParamSpec("Arguments")
Key = tuple[Any, ...]

_PROVIDED: dict[Key, LabelledData] = {}
_COLLECTED: list[dict[Key, LabelledData]] = []


def provide(data: Mapping[Key, LabelledData]) -> None:
    """Hand over data sets for this process, as `collecting` of another one yielded them; arrays may be read-only."""
    _PROVIDED.update(data)


@contextmanager
def collecting() -> Iterator[dict[Key, LabelledData]]:
    """Yield a mapping that fills with the data sets that are read inside; nothing is kept for this process."""
    _COLLECTED.append({})
    try:
        yield _COLLECTED[-1]
    finally:
        _COLLECTED.pop()


def providable(read: Callable[Arguments, LabelledData]) -> Callable[Arguments, LabelledData]:
    """Decorate a reader of a data set, so that it returns what was handed over for the same arguments."""

    @functools.wraps(read)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> LabelledData:
        key = (read.__name__, *args, *sorted(kwargs.items()))
        data = _PROVIDED[key] if key in _PROVIDED else read(*args, **kwargs)
        # What lies in a mapped file is shared by all processes of a machine as it is.
        if not _is_mapped(data):
            for collected in _COLLECTED:
                collected[key] = data
        return data

    return wrapper


def _is_mapped(data: LabelledData) -> bool:
    import numpy as np

    return isinstance(getattr(data, "inputs", None), np.memmap)
