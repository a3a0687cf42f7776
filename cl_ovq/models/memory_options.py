"""The memory head as a configuration asks for it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from torch import nn

from cl_ovq.errors import UserError
from cl_ovq.mixers import GROWTHS
from cl_ovq.models.base import HEADS
from cl_ovq.models.freezing import learns
from cl_ovq.models.memory import PRIORS, MemoryHead
from cl_ovq.models.slots import GROWTH
from cl_ovq.options import COUNT, option
from streams.stream import classless

if TYPE_CHECKING:
    from streams import Stream


@dataclass
class MemoryOptions:
    """The options of the memory head."""

    capacity: int = option(2000, "total number of slots over all classes (N)", minimum=1, maximum=COUNT)
    chunk_size: int = option(32, "samples per write (L)", minimum=1, maximum=COUNT)
    growth: str = option(
        "plateau", "growth schedule of a class's slots with its number of samples", parts=GROWTHS, choices=GROWTH
    )
    beta: float | None = option(
        None, "inverse temperature of the read-out; derived from the number of features if null", exclusive_minimum=0
    )
    shrinkage: float = option(
        0.3, "shrinkage of the covariance towards a multiple of the identity", minimum=0, maximum=1
    )
    class_weight: float = option(0.05, "exponent of the linear discriminant that multiplies the read-out", minimum=0)
    confidence: float = option(0.6, "exponent of the class probabilities", exclusive_minimum=0)
    normalise: bool = option(True, "normalise every feature vector to the same length")
    prior: str = option("balanced", "prior of the classes seen: uniform, or by sample counts", choices=PRIORS)
    storage: str = option("float32", "dtype of the stored means", choices=("float32", "float16", "int8"))
    calibrate: bool = option(
        False, "tune beta, shrinkage, class_weight and confidence on validation data after each experience"
    )


@HEADS.enter(
    "memory",
    "a memory that learns without gradients, with an auxiliary linear head if the encoder is trained",
    sections={"memory": MemoryOptions},
)
def build_memory(model: Any, network: nn.Module, stream: Stream, options: MemoryOptions) -> None:
    """Put a memory in the place of a network's linear head, or beside it where an encoder is to be trained."""
    from cl_ovq.models.heads import RememberingHead

    if stream.kind != "classes":
        has = classless(stream.kind)
        raise UserError(f"model.head: a memory head predicts classes, but '{stream.name}' has {has}")
    linear = network.head
    assert isinstance(linear, nn.Linear)
    if options.capacity < stream.n_classes:
        raise UserError(
            f"memory.capacity: {options.capacity} is too small: it must be at least one slot for each of the "
            f"{stream.n_classes} classes"
        )
    given = {field.name: getattr(options, field.name) for field in fields(MemoryOptions) if field.name != "calibrate"}
    growth = {name: getattr(options, name) for name in ("growth_rate", "concentration") if hasattr(options, name)}
    head = MemoryHead(features=linear.in_features, classes=stream.n_classes, **given, **growth)
    network.head = RememberingHead(head, linear if learns(network) else None)
