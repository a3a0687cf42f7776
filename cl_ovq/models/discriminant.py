"""Classifiers of features by their class means: streaming LDA and nearest class mean. They learn without gradients.

Letters: `B` samples, `F` features, `C` classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cl_ovq.models.gradient_free import GradientFreeHead, cholesky
from cl_ovq.models.whitening import ClassCovariance


class Centred(NamedTuple):
    """Linear scores of features from an origin among them: squares far from zero would drown their differences."""

    origin: Tensor  # [F] fp32, the mean of all samples
    weights: Tensor  # [F, C] fp64
    offsets: Tensor  # [C] fp64


class NearestMean(GradientFreeHead):
    """Nearest class mean (Mensink et al. 2013): the class whose running mean is nearest.

    The score of a class is `-|x - mean|^2 / 2`, or with `cosine` `x mean / |mean|`, which is largest where the cosine
    of the two is.

    Args:
        features: F.
        classes: C, the most that can come.
        distance: `euclidean` or `cosine`.

    Buffers:
        counts: `[C]` int64, samples of each class.
        means: `[C, F]` fp64.
    """

    counts: Tensor
    means: Tensor

    def __init__(self, *, features: int, classes: int, distance: str = "euclidean") -> None:
        super().__init__(features=features, classes=classes)
        self.distance = distance
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("means", torch.zeros(classes, features, dtype=torch.float64))

    @property
    def seen(self) -> Tensor:
        """Samples of each class so far, `[C]` int64."""
        return self.counts

    def _learn(self, x: Tensor, y: Tensor) -> None:
        self.counts += torch.bincount(y, minlength=self.classes)
        away = torch.zeros_like(self.means).index_add_(0, y, x.double() - self.means[y])
        self.means += away / self.counts.clamp(min=1)[:, None]

    def _prepare(self) -> Centred:
        if self.distance == "cosine":
            directions = torch.nn.functional.normalize(self.means, dim=1)
            return Centred(torch.zeros_like(self.means[0], dtype=torch.float32), directions.mT, 0 * directions[:, 0])
        origin = (self.counts.double() @ self.means / self.tokens).float()
        means = self.means - origin
        return Centred(origin, means.mT, means.square().sum(1) / 2)

    def _scores(self, x: Tensor, prepared: Centred) -> Tensor:
        return (x - prepared.origin).double() @ prepared.weights - prepared.offsets


class StreamingDiscriminant(GradientFreeHead):
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
        super().__init__(features=features, classes=classes)
        self.shrinkage = shrinkage
        self.covariance = ClassCovariance(features=features, classes=classes)

    @property
    def seen(self) -> Tensor:
        """Samples of each class so far, `[C]` int64."""
        return self.covariance.counts

    def _learn(self, x: Tensor, y: Tensor) -> None:
        self.covariance.update(x, y)

    def _prepare(self) -> Centred:
        origin = self.covariance.mean().float()
        means, covariance = self.covariance.means - origin, self.covariance.covariance()
        identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
        factor = cholesky((1 - self.shrinkage) * covariance + self.shrinkage * identity)
        weights = torch.cholesky_solve(means.mT, factor)
        return Centred(origin, weights, (means.mT * weights).sum(0) / 2)

    def _scores(self, x: Tensor, prepared: Centred) -> Tensor:
        return (x - prepared.origin).double() @ prepared.weights - prepared.offsets
