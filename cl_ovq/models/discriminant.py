"""Classifiers of features by their class means: streaming LDA and nearest class mean. They learn without gradients.

Letters: `B` samples, `F` features, `C` classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cl_ovq.models.read_out import FLOOR
from cl_ovq.models.whitening import ClassCovariance, keep_type


class NearestMean(nn.Module):
    """Nearest class mean (Mensink et al. 2013): the class whose running mean is nearest.

    The score of a class is `-|x - mean|^2 / 2`.

    Args:
        features: F.
        classes: C, the most that can come.

    Buffers:
        counts: `[C]` int64, samples of each class.
        means: `[C, F]` fp64.
    """

    counts: Tensor
    means: Tensor

    def __init__(self, *, features: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("means", torch.zeros(classes, features, dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NearestMean:
        """Move to another device, but keep the types."""
        return super()._apply(keep_type(fn), recurse)

    @property
    def tokens(self) -> int:
        """Samples seen."""
        return int(self.counts.sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @torch.no_grad()
    def observe(self, features: Tensor, targets: Tensor) -> None:
        """Take in samples: features `[B, F]` and targets `[B]`."""
        self.counts += torch.bincount(targets, minlength=self.classes)
        away = torch.zeros_like(self.means).index_add_(0, targets, features.double() - self.means[targets])
        self.means += away / self.counts.clamp(min=1)[:, None]

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[B, F]` to log-probabilities `[B, C]`; a class not seen has the probability `FLOOR / C`."""
        means = self.means.to(features.dtype)
        return _log_probabilities(features @ means.mT - means.square().sum(1) / 2, self.counts)


class StreamingDiscriminant(nn.Module):
    """Streaming linear discriminant analysis (Hayes and Kanan 2020, arXiv 1909.01520), exact.

    The score of a class is `x L mean - mean L mean / 2` with `L` the inverse of the covariance within classes, shrunk
    towards the identity: `(1 - shrinkage) S + shrinkage I`, as in the paper; all classes have the same prior. Class
    means and covariance are exact whatever the batches (`ClassCovariance`); the paper's recursion, and Avalanche's,
    weights a class's first samples as if it had been there from the start.

    Args:
        features: F.
        classes: C, the most that can come.
        shrinkage: from 0 to 1.
    """

    def __init__(self, *, features: int, classes: int, shrinkage: float = 1e-4) -> None:
        super().__init__()
        self.classes = classes
        self.shrinkage = shrinkage
        self.covariance = ClassCovariance(features=features, classes=classes)
        self._weights: tuple[int, Tensor, Tensor] | None = None

    @property
    def tokens(self) -> int:
        """Samples seen."""
        return int(self.covariance.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept; what a read makes of it is not counted."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def observe(self, features: Tensor, targets: Tensor) -> None:
        """Take in samples: features `[B, F]` and targets `[B]`."""
        self.covariance.update(features, targets)

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[B, F]` to log-probabilities `[B, C]`; a class not seen has the probability `FLOOR / C`."""
        seen = int(self.covariance.tokens)
        if self._weights is None or self._weights[0] != seen:
            self._weights = (seen, *self._solve())
        _, weights, offsets = self._weights
        return _log_probabilities((features.double() @ weights - offsets).to(features.dtype), self.covariance.counts)

    @torch.no_grad()
    def _solve(self) -> tuple[Tensor, Tensor]:
        """Weights `[F, C]` and offsets `[C]` of the linear scores."""
        means, covariance = self.covariance.means, self.covariance.covariance()
        identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
        matrix = (1 - self.shrinkage) * covariance + self.shrinkage * identity
        factor = torch.linalg.cholesky(matrix + 1e-12 * identity)
        weights = torch.cholesky_solve(means.mT, factor)
        return weights, (means.mT * weights).sum(0) / 2


def _log_probabilities(scores: Tensor, counts: Tensor) -> Tensor:
    unseen = counts == 0
    if unseen.all():
        return torch.zeros_like(scores).log_softmax(1)
    known = scores.masked_fill(unseen, -torch.inf).softmax(1)
    return ((1 - FLOOR) * known + FLOOR / scores.shape[1]).log()
