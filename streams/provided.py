"""Data sets that somebody else has read already: handed over in memory, and not read again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from streams.split import LabelledImages

Arguments = ParamSpec("Arguments")
Key = tuple[Any, ...]

_DATA: dict[Key, LabelledImages] = {}


def provide(data: Mapping[Key, LabelledImages]) -> None:
    """Hand over data sets for this process, as `held` of another process returned them; arrays may be read-only."""
    _DATA.update(data)


def held() -> dict[Key, LabelledImages]:
    """Return the data sets that were handed over, or kept by `keep`."""
    return dict(_DATA)


def keep(read: Callable[[], LabelledImages]) -> None:
    """Read a data set with a reader that `providable` decorates, and keep it for whoever reads it next."""
    global _KEEPING
    _KEEPING = True
    try:
        read()
    finally:
        _KEEPING = False


_KEEPING = False


def providable(read: Callable[Arguments, LabelledImages]) -> Callable[Arguments, LabelledImages]:
    """Decorate a reader of a data set, so that it returns what was handed over for the same arguments."""

    @functools.wraps(read)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> LabelledImages:
        key = (read.__name__, *args, *sorted(kwargs.items()))
        if key in _DATA:
            return _DATA[key]
        data = read(*args, **kwargs)
        if _KEEPING:
            _DATA[key] = data
        return data

    return wrapper
