"""Scalable-Softmax (Nakanishi 2025, arXiv 2501.19399): the more tokens a query sees, the sharper it attends.

A softmax over n tokens spreads out as n grows, whatever its logits. With logits in proportion to log n it does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_ovq.mixers.base import AttentionOptions
from cl_ovq.options import option

USUAL = 64  # tokens at which the inverse temperature is what it would be without


@dataclass
class ScalableOptions(AttentionOptions):
    """What every mixer of attention over all tokens has."""

    scalable_softmax: bool = option(
        False,
        f"multiply every query's logits by log(1 + n) / log({1 + USUAL}), where n is the number of tokens it sees",
    )


def log_length(before: Tensor | int, mask: Tensor | None, like: Tensor) -> Tensor:
    """Return the factor of each token's logits, `[B or 1, T]`: `log(1 + n) / log(1 + USUAL)`.

    Args:
        before: tokens seen before these, `[B]` or a number for all.
        mask: `[B, T]`, true for tokens; None if all are.
        like: `[B, T, ...]`, gives number, type and device.
    """
    own = torch.arange(1, like.shape[1] + 1, device=like.device)[None] if mask is None else mask.cumsum(1)
    seen = own + (before if isinstance(before, int) else before[:, None])
    return (seen.to(torch.float32).log1p() / math.log1p(USUAL)).to(like.dtype)
