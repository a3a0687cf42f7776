"""Task streams: what data comes in what order. Knows nothing of models.

Importing the package is cheap: torch, torchvision, scikit-learn and Avalanche are imported when a stream is built (or
`TensorSamples` is asked for).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.errors import StreamDataError
from streams.options import SplitOptions
from streams.registry import STREAMS, StreamEntry, build_stream
from streams.stream import Stream

if TYPE_CHECKING:
    from streams.samples import TensorSamples, rows_of

# Tells this package from another distribution's of the same name.
__project__ = "cl-ovq"

__all__ = [
    "STREAMS",
    "SplitOptions",
    "Stream",
    "StreamDataError",
    "StreamEntry",
    "TensorSamples",
    "build_stream",
    "rows_of",
]


def __getattr__(name: str) -> Any:
    if name in ("TensorSamples", "rows_of"):
        from streams import samples  # imports torch

        return getattr(samples, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
