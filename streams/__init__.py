"""Task streams: what data comes in what order. Knows nothing of models.

Importing the package is cheap: torch, torchvision, scikit-learn and Avalanche are imported when a stream is built (or
samples are asked for).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.errors import StreamDataError
from streams.options import SplitOptions
from streams.registry import STREAMS, StreamEntry, build_stream
from streams.stream import Stream

if TYPE_CHECKING:
    from streams.samples import Samples, TensorSamples, rows_of
    from streams.sequences import IGNORED, PADDING, SequenceSamples

# Tells this package from another distribution's of the same name.
__project__ = "cl-ovq"

__all__ = [
    "IGNORED",
    "PADDING",
    "STREAMS",
    "Samples",
    "SequenceSamples",
    "SplitOptions",
    "Stream",
    "StreamDataError",
    "StreamEntry",
    "TensorSamples",
    "build_stream",
    "rows_of",
]


def __getattr__(name: str) -> Any:
    if name in ("Samples", "TensorSamples", "rows_of"):
        from streams import samples  # imports torch

        return getattr(samples, name)
    if name in ("IGNORED", "PADDING", "SequenceSamples"):
        from streams import sequences

        return getattr(sequences, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
