"""Samples, and a head that has seen some, for tests of the memory head and of its covariance."""

from __future__ import annotations

import numpy as np
import torch

from cl_ovq.models.memory import MemoryHead


def samples(n: int, features: int = 6, classes: int = 4, seed: int = 0, far: float = 0.0):
    """Classes of two clusters each, correlated features: `[n, F]` and `[n]`."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(features, features, generator=g)
    centres = 2 * torch.randn(classes, 2, features, generator=g)
    y = torch.randint(classes, (n,), generator=g)
    which = torch.randint(2, (n,), generator=g)
    return (centres[y, which] + torch.randn(n, features, generator=g)) @ mix + far, y


def pooled(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    deviations = np.concatenate([x[y == c] - x[y == c].mean(0) for c in np.unique(y)])
    return deviations.T @ deviations / len(x)


def plain(**options) -> MemoryHead:
    """A head whose statistics are those of the features as they are."""
    return MemoryHead(**{"features": 6, "classes": 4, "normalise": False, "shrinkage": 0.1} | options)


def filled(n: int = 300, seed: int = 0, **options) -> tuple[MemoryHead, torch.Tensor, torch.Tensor]:
    x, y = samples(n, seed=seed)
    head = plain(**{"capacity": 40, **options})
    head.observe(x, y)
    return head, x, y
