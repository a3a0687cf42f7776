"""Which tiles each kernel works in, by target, width of operands and head size.

`python -m kernels.triton.compile` checks that no entry spills registers or exceeds shared memory.
They were found without a GPU, so the largest that fits was taken, not the fastest that was measured.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from kernels.triton.launch import power
from kernels.triton.tile_table import TILES

_target: str | None = None
_changes: dict[str, dict[str, int]] = {}


class Tile(NamedTuple):
    """Rows (tokens or queries) and columns (slots or tokens) of a tile, the warps that share it, stages of loads.

    `inner` is how many tokens of its chunk the scan compares a tile with at a time. `registers` is how many a thread
    may use, where the assembler would otherwise save some for other programs on the core, and spill for that.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    inner: int = 32
    registers: int | None = None


@contextmanager
def for_target(name: str) -> Iterator[None]:
    """Choose tiles for another target than the GPU that is there."""
    global _target
    before, _target = _target, name
    try:
        yield
    finally:
        _target = before


@contextmanager
def replaced(kernel: str, **changes: int) -> Iterator[None]:
    """Change fields of every tile of a kernel, to measure another choice."""
    _changes[kernel] = changes
    try:
        yield
    finally:
        del _changes[kernel]


def target(device: torch.device) -> str:
    """The target that tiles are chosen for: `sm_80`, `sm_90`, `sm_100` or `gfx942`, the nearest to the tensors' GPU."""
    if _target is not None:
        return _target
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip:
        return "gfx942"
    major = torch.cuda.get_device_capability(device)[0]
    return "sm_100" if major >= 10 else "sm_90" if major == 9 else "sm_80"


def tile(
    kernel: str, dtype: torch.dtype, head: int, most: tuple[int, int], *, plain: bool, device: torch.device
) -> Tile:
    """The tile of a kernel.

    Args:
        kernel: its name in the table.
        dtype: of operands.
        head: the larger of key and value size.
        most: rows and columns that there are to work on at a time; a tile has no more.
        plain: whether the call has default options, for which less needs to be held at a time.
        device: of the tensors.
    """
    wide = dtype == torch.float32
    found = Tile(*TILES[kernel, target(device), wide, 128 if head > 64 else 64, plain and not wide])
    found = found._replace(**_changes.get(kernel, {}))
    rows, columns = power(most[0], most=found.rows), power(most[1], most=found.columns)
    return found._replace(rows=rows, columns=columns, inner=min(found.inner, rows))
