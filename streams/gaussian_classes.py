"""Synthetic classes: mixtures of Gaussians whose features are correlated alike, drawn anew for every episode.

Letters: `B` episodes, `C` classes, `S` samples, `D` features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MODES = 4  # Gaussians of a class


@dataclass(frozen=True)
class GaussianClasses:
    """The classes of B episodes: `x = A (m_c + s u_cj + r z)` for a sample of class c and of its mode j.

    `m`, `u` and `z` are standard normal. `A = R diag(i^-p)`, with normal R and i from 1 to D, correlates features, so
    that a few directions hold most of the variance, as in features of real data. The exponent p, the spread of modes s
    and the noise r are drawn uniformly for each episode from [0.3, 1.5], [0.3, 1.2] and [0.2, 0.9].

    Args:
        mixing: A, `[B, D, D]`.
        modes: `m_c + s u_cj`, `[B, C, MODES, D]`.
        noise: r, `[B]`.
    """

    mixing: Tensor
    modes: Tensor
    noise: Tensor

    @classmethod
    def draw(cls, episodes: int, classes: int, features: int, generator: torch.Generator) -> GaussianClasses:
        """Draws the classes of B = `episodes` episodes: C = `classes` each, of D = `features`."""

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(episodes, generator=generator)

        power, spread, noise = uniform(0.3, 1.5), uniform(0.3, 1.2), uniform(0.2, 0.9)
        scale = torch.arange(1, features + 1) ** -power[:, None]  # [B, D]
        mixing = torch.randn(episodes, features, features, generator=generator) * scale[:, None]
        means = torch.randn(episodes, classes, 1, features, generator=generator)
        modes = torch.randn(episodes, classes, MODES, features, generator=generator)
        return cls(mixing, means + spread[:, None, None, None] * modes, noise)

    def samples(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Draws a sample `[B, S, D]` of each class that `labels [B, S]` names."""
        b, s = labels.shape
        mode = torch.randint(0, MODES, (b, s), generator=generator)
        centre = self.modes[torch.arange(b)[:, None], labels, mode]
        noise = torch.randn(b, s, self.modes.shape[-1], generator=generator)
        return torch.einsum("bij,bsj->bsi", self.mixing, centre + self.noise[:, None, None] * noise)
