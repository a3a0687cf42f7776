"""How kernels are launched: which tiles they work in, and a way to learn what would be launched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, its grid, its arguments by name, and how it is compiled."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]


_record: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect launches in place of making them; tensors may be on the `meta` device."""
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before


def launch(
    kernel: Any, grid: tuple[int, ...], *, warps: int, stages: int = 2, registers: int | None = None, **arguments: Any
) -> None:
    """Launch a kernel, unless its grid is empty.

    Args:
        kernel: a Triton kernel.
        grid: programs in each dimension.
        warps: of a program.
        stages: of loads that run ahead.
        registers: that a thread may use, where the compiler's choice is not wanted.
        arguments: of the kernel, by name.
    """
    if not all(grid):
        return
    options = {"num_warps": warps, "num_stages": stages}
    if registers is not None:
        options["maxnreg"] = registers
    if _record is not None:
        _record.append(Launch(kernel, grid, arguments, options))
        return
    kernel[grid](**arguments, **options)


def power(x: int, least: int = 16, most: int = 1 << 30) -> int:
    """The smallest power of two that is at least x, within bounds."""
    return max(least, min(most, 1 << max(0, x - 1).bit_length()))


def precision(device: torch.device) -> str:
    """How products of fp32 operands are made: near fp32 on NVIDIA's matrix units, exactly on AMD's."""
    return "ieee" if torch.version.hip and device.type == "cuda" else "tf32x3"


def widest(*tensors: Tensor) -> torch.dtype:
    """Dtype of operands: 16 bits where all inputs have the same 16 bits, else fp32."""
    dtypes = {x.dtype for x in tensors}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32
