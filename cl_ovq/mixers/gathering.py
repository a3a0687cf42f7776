"""The tokens of all processes of a distributed run, so that each writes what all have read."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def is_distributed() -> bool:
    """Whether this process trains together with others (`torch.distributed`)."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows `[m, F]` of all processes, in order of rank; every process must call, whatever its m."""
    mine = torch.tensor([len(rows)], device=rows.device)
    sizes = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, mine)
    counts = [int(size) for size in sizes]
    padded = rows.new_zeros(max(counts), rows.shape[1])  # a gather takes as much from each
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
