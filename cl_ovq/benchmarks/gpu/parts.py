"""What a part is made of, and the parts in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What every part is told.

    Attributes:
        rehearsal: whether there is no GPU: tiny sizes on the CPU, kernels in Triton's interpreter.
        processes: how many may compile or test side by side.
        output: folder of the records.
    """

    rehearsal: bool
    processes: int
    output: Path

    @property
    def device(self) -> str:
        """Where tensors are drawn."""
        return "cpu" if self.rehearsal else "cuda"


@dataclass(frozen=True)
class Item:
    """One thing to do.

    Attributes:
        name: unique in its part.
        run: does it, and returns what was found.
        limit: seconds after which it is given up.
    """

    name: str
    run: Callable[[], dict[str, Any]]
    limit: float = 45.0


@dataclass(frozen=True)
class Part:
    """A part of the run.

    Attributes:
        name: of its file of records and, in `cl_ovq.benchmarks.gpu`, of its module, whose `items` lists what to do.
        seconds: that it may take at first; what is left of it waits until all other parts had their turn.
        warmed: whether `warm_up` compiles its kernels.
    """

    name: str
    seconds: float
    warmed: bool = False

    def items(self, settings: Settings) -> list[Item]:
        """What there is to do."""
        module = import_module(f"cl_ovq.benchmarks.gpu.{self.name}")
        found: list[Item] = module.items(settings)
        return found


# Together they take less than the nine and a half minutes of a call.
PARTS = (
    Part("probe", 40),
    Part("warm_up", 110),
    Part("correctness", 80, warmed=True),
    Part("speed", 130, warmed=True),
    Part("native_tests", 90),
    Part("training", 40, warmed=True),
    Part("sanitizer", 60, warmed=True),
)
