"""How kernels are launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton import observing
from kernels.triton.interpreter import mend
from kernels.triton.observing import Launch, Span

if TYPE_CHECKING:
    from kernels.triton.tiles import Tile

INTERPRETED = bool(triton.knobs.runtime.interpret)
if INTERPRETED:
    mend()
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one: Triton launches there, whatever device the tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def launch(kernel: Any, grid: tuple[int, ...], tile: Tile, arguments: dict[str, Any]) -> None:
    """Launch a kernel, unless its grid is empty.

    Args:
        kernel: a Triton kernel.
        grid: programs in each dimension.
        tile: that a program works in.
        arguments: by name; the kernel gets those that it names, and the tile's.

    Raises:
        KeyError: naming an argument of the kernel that is not there.
    """
    if not all(grid):
        return
    arguments = arguments | {"BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "BLOCK_I": tile.inner}
    arguments = {name: arguments[name] for name in kernel.arg_names}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    if tile.registers is not None:
        options["maxnreg"] = tile.registers
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


def strides(name: str, x: Tensor) -> dict[str, int]:
    """Strides of tokens or queries `[B, T, heads, D]` but the last, as kernels name them."""
    return dict(zip((f"{name}_row", f"{name}_token", f"{name}_head"), x.stride(), strict=False))


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
