"""Mahalanobis distances with a covariance of each class's own (FeCAM).

Letters: `B` samples, `F` features, `C` classes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.models.gradient_free import GradientFreeHead, cholesky
from cl_ovq.models.whitening import ClassCovariance


class MahalanobisHead(GradientFreeHead):
    """FeCAM (Goswami et al. 2023, arXiv 2309.14062): the class at the least Mahalanobis distance.

    Features `x` become `sign(x) |x|^tukey` (Tukey's transform; the sign is ours, since the paper's features are not
    negative). The covariance of each class is shrunk, `S + shrinkage V1 I + shrinkage V2 (1 - I)` with `V1` the mean
    of its diagonal and `V2` that of all else, and then divided by its standard deviations, so that classes of large
    and of small variance compare: it is a correlation matrix. The distance is that of feature vector and class mean,
    both of length one, as in the authors' code. Means and covariances are those of the transformed features, exact
    whatever the batches and their order; the authors transform the means of untransformed ones. Transform and length
    look at where zero is: so do the answers. Far from there directions differ little, and are taken in fp64.

    A class's distances cost F^2 operations a sample and its covariance 4 F^2 bytes: the dearest of all heads in many
    classes.

    Args:
        features: F.
        classes: C, the most that can come.
        shrinkage: of each class's covariance (the paper's gamma_1 and gamma_2).
        tukey: exponent; 1 changes nothing.
    """

    def __init__(self, *, features: int, classes: int, shrinkage: float = 1.0, tukey: float = 0.5) -> None:
        super().__init__(features=features, classes=classes)
        self.shrinkage, self.tukey = shrinkage, tukey
        self.statistics = nn.ModuleList(ClassCovariance(features=features, classes=1) for _ in range(classes))

    @property
    def seen(self) -> Tensor:
        """Samples of each class so far, `[C]` int64."""
        return torch.cat([one.counts for one in self._of_classes])

    @property
    def _of_classes(self) -> list[ClassCovariance]:
        return cast("list[ClassCovariance]", list(self.statistics))

    def _learn(self, x: Tensor, y: Tensor) -> None:
        x, statistics = self._transform(x), self._of_classes
        for label in y.unique().tolist():
            members = x[y == label]
            statistics[label].update(members, torch.zeros(len(members), dtype=torch.int64, device=x.device))

    def _transform(self, x: Tensor) -> Tensor:
        x = x.double()
        return x.sign() * x.abs() ** self.tukey

    def _prepare(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Mean `[F]` fp64 and whitening `[F, F]` fp32 of each class seen, in which distances are Euclidean."""
        found = {}
        for label, one in enumerate(self._of_classes):
            if one.tokens:
                factor = cholesky(self._correlation(one.covariance()))
                identity = torch.eye(self.features, dtype=factor.dtype, device=factor.device)
                whiten = torch.linalg.solve_triangular(factor, identity, upper=False).mT
                found[label] = (functional.normalize(one.means[0], dim=0), whiten.float())
        return found

    def _correlation(self, covariance: Tensor) -> Tensor:
        """Shrink a covariance `[F, F]` and make it a correlation matrix; features that never varied have none."""
        identity = torch.eye(self.features, dtype=covariance.dtype, device=covariance.device)
        diagonal = covariance.trace() / self.features
        others = (covariance.sum() - covariance.trace()) / max(1, self.features * (self.features - 1))
        shrunk = covariance + self.shrinkage * (diagonal * identity + others * (1 - identity))
        deviations = shrunk.diagonal().clamp(min=0).sqrt()
        varied = deviations > 0
        scaled = shrunk / torch.where(varied, deviations, 1.0).outer(torch.where(varied, deviations, 1.0))
        return torch.where(varied.outer(varied), scaled, 0.0).fill_diagonal_(1.0)

    def _scores(self, x: Tensor, prepared: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
        x = functional.normalize(self._transform(x))
        scores = x.new_zeros(len(x), self.classes)
        for label, (mean, whiten) in prepared.items():
            scores[:, label] = -((x - mean).float() @ whiten).square().sum(1) / 2
        return scores
