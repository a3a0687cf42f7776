"""Features of any encoder as a learner that was made for others takes them.

Letters: `B` samples, `F` features, `D` features that the learner takes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def statistics_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, `[..., 1, F]` each, of samples `[..., B, F]`.

    A feature's variance counts together with the mean of all: one that hardly varies in these samples must not become
    the largest of those to come. Of a single sample, or of samples that are all alike, the deviation is one.
    """
    mean = x.mean(-2, keepdim=True)
    variance = (x - mean).square().mean(-2, keepdim=True)
    deviation = (variance + variance.mean(-1, keepdim=True)).sqrt()
    return mean, torch.where(deviation > torch.finfo(x.dtype).tiny ** 0.5, deviation, 1.0)


def standardise(x: Tensor, mean: Tensor, deviation: Tensor, projection: Tensor | None = None) -> Tensor:
    """Return samples `[..., B, F]` as vectors of length one, `[..., B, D]`.

    Args:
        x: samples.
        mean: see `statistics_of`.
        deviation: likewise.
        projection: `[F, D]`; none if F = D.
    """
    x = (x - mean) / deviation
    if projection is not None:
        x = x @ projection
    return functional.normalize(x, dim=-1)


def projection_of(features: int, size: int, generator: torch.Generator) -> Tensor | None:
    """Return a random projection `[F, D]` onto orthonormal directions; zeros fill up to D = `size`."""
    if features == size:
        return None
    if features < size:
        return torch.eye(features, size)
    return torch.linalg.qr(torch.randn(features, size, generator=generator)).Q
