"""Rotary position encoding (Su et al. 2021): what a query and a key have to do with each other depends on distance."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0


def rotate(x: Tensor, first: int = 0) -> Tensor:
    """Turn pairs of features by angles that grow with the position.

    Args:
        x: `[..., T, D]` with an even D; feature i is paired with feature i + D / 2.
        first: position of the first token; may be negative, since only distances count.
    """
    half = x.shape[-1] // 2
    # In double: at 65 536 tokens a float32 angle is off by 0.004.
    frequencies = BASE ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    positions = torch.arange(first, first + x.shape[-2], dtype=torch.float64, device=x.device)
    angles = positions[:, None] * frequencies  # [T, D / 2]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.split(half, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
