"""How kernels are launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton import observing
from kernels.triton.interpreter import mend
from kernels.triton.observing import Launch, Span

INTERPRETED = bool(triton.knobs.runtime.interpret)
if INTERPRETED:
    mend()
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one: Triton launches there, whatever device the tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


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
    if observing.launches is not None:
        observing.launches.append(Launch(kernel, grid, arguments, options))
        return
    if observing.spans is None:
        kernel[grid](**arguments, **options)
        return
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    kernel[grid](**arguments, **options)
    end.record()
    observing.spans.append(Span(kernel.__name__, begin, end))


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
