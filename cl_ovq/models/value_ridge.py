"""Ridge regression of vectors from running sums.

Letters: `B` samples, `F` features, `C` numbers of a vector.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from cl_ovq.models.gradient_free import ValueHead, cholesky
from cl_ovq.models.ridge import STRENGTHS, RidgeStatistics
from cl_ovq.models.whitening import ClassCovariance


class ValueRidgeHead(RidgeStatistics, ValueHead):
    """Ridge regression with a constant that is not shrunk, exact whatever the batches and their order.

    What `RidgeHead` is for classes: a fit on all samples so far, and without a `strength` that of `STRENGTHS` whose fit
    on four fifths of the samples has the least squared error on an experience's other fifth.

    Args:
        features: F.
        classes: C.
        strength: of the penalty, absolute, as scikit-learn's `alpha`; None to choose it.

    Buffers:
        strength: fp64, as given or as it was chosen last.
        learned, held: statistics of features and vectors side by side, of one class, see `ClassCovariance`.
    """

    def __init__(self, *, features: int, classes: int, strength: float | None = None) -> None:
        summed = (features + classes, 1)
        super().__init__(features=features, classes=classes, strength=strength, summed=summed)

    @property
    def seen(self) -> Tensor:
        """Samples so far, `[]` int64."""
        return self.learned.tokens if self.held is None else self.learned.tokens + self.held.tokens

    def _learn(self, x: Tensor, y: Tensor) -> None:
        both, one = torch.cat([x, y.float()], 1), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._keep(both, one)

    def _prepare(self) -> tuple[Tensor, Tensor]:
        """Weights `[F, C]` and constants `[C]`."""
        statistics, strength = self.learned, float(self.strength)
        if self.held is not None and self.held.tokens:
            strength = self._chosen()
            statistics = copy.deepcopy(statistics)
            statistics.merge_(self.held)
        origin = statistics.means[0]
        weights = self._fit(_scatter(statistics, origin), strength)
        return weights, origin[self.features :] - origin[: self.features] @ weights

    def _scores(self, x: Tensor, prepared: tuple[Tensor, Tensor]) -> Tensor:
        weights, constants = prepared
        return x.double() @ weights + constants

    def _fit(self, scatter: Tensor, strength: float) -> Tensor:
        f = self.features
        identity = torch.eye(f, dtype=scatter.dtype, device=scatter.device)
        return torch.cholesky_solve(scatter[:f, f:], cholesky(scatter[:f, :f] + strength * identity))

    def _chosen(self) -> float:
        """The strength whose fit on `learned` has the least squared error on `held`."""
        assert self.held is not None
        if not self.learned.tokens:
            return float(self.strength)
        f, origin = self.features, self.learned.means[0]
        scatter, held = _scatter(self.learned, origin), _scatter(self.held, origin)
        errors = {}
        for strength in STRENGTHS:  # but for the sum of squared targets, which all have
            weights = self._fit(scatter, strength)
            errors[strength] = float((weights * (held[:f, :f] @ weights - 2 * held[:f, f:])).sum())
        return min(errors, key=errors.__getitem__)


def _scatter(statistics: ClassCovariance, origin: Tensor) -> Tensor:
    """Sum over samples z `[F + C]` of `(z - origin) (z - origin)^T`."""
    away = statistics.means[0] - origin
    return statistics.tokens * (statistics.covariance() + away[:, None] * away)
