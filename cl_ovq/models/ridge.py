"""Ridge regression of class labels from running sums, on features or on a random projection of them (RanPAC).

Letters: `B` samples, `F` features, `M` random features (F without a projection), `C` classes.
"""

from __future__ import annotations

import copy
from abc import abstractmethod

import torch
from torch import Tensor

from cl_ovq.models.gradient_free import GradientFreeHead, cholesky
from cl_ovq.models.whitening import ClassCovariance

STRENGTHS = tuple(10.0**power for power in range(-8, 9))  # to choose from, those of the RanPAC paper
HELD_OUT = 5  # one sample in so many is held out while an experience is learned


class RidgeStatistics(GradientFreeHead):
    """Sums of a ridge regression, and of samples held out until an experience ends, which choose its strength.

    Args:
        features: F.
        classes: C.
        strength: of the ridge; None to choose it.
        summed: features and classes of the sums.
    """

    strength: Tensor

    def __init__(self, *, features: int, classes: int, strength: float | None, summed: tuple[int, int]) -> None:
        super().__init__(features=features, classes=classes)
        self.register_buffer("strength", torch.tensor(1.0 if strength is None else strength, dtype=torch.float64))
        self.learned = ClassCovariance(features=summed[0], classes=summed[1])
        self.held = ClassCovariance(features=summed[0], classes=summed[1]) if strength is None else None

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept from experience to experience; what a read makes of it is not counted."""
        return self.strength.nbytes + sum(buffer.nbytes for buffer in self.learned.buffers())

    @torch.no_grad()
    def end_experience(self) -> None:
        """Choose the strength, and give the samples that were held out for it to the others."""
        if self.held is None or not self.held.tokens:
            return
        self.strength.fill_(self._chosen())
        self.learned.merge_(self.held)
        for buffer in self.held.buffers():
            buffer.zero_()
        self._prepared = None

    def _keep(self, x: Tensor, y: Tensor) -> None:
        """Sum samples, features `[B, F']` and targets `[B]`; hold some of them out."""
        if self.held is None:
            self.learned.update(x, y)
            return
        held = (torch.arange(len(y), device=y.device) + self.tokens) % HELD_OUT == HELD_OUT - 1
        self.learned.update(x[~held], y[~held])
        self.held.update(x[held], y[held])

    @abstractmethod
    def _chosen(self) -> float:
        """Return the strength that predicts the held-out samples best."""


class RidgeHead(RidgeStatistics):
    """Ridge regression on one-hot targets, exact whatever the batches and their order.

    The weights are `(G + strength I)^-1 Q` with `G` the sum over samples of `x x^T` and `Q` that of `x y^T`: what
    recursive least squares arrives at, and what a fit on all samples at once gives. Features and targets are centred
    by their means, so that the constant is not shrunk. The sums are made from class means and the scatter within
    classes (`ClassCovariance`), in fp64 and without squares of large means.

    With `width`, features are first mapped to `relu(x W)` with M normal random numbers for each, and nothing is
    centred: RanPAC (McDonnell et al. 2023, arXiv 2307.02251, equations 3 to 6). `W` is drawn once, from the generator
    that draws a model's weights, and is counted as little as those are.

    Without a `strength` it is chosen as in that paper, from `STRENGTHS`, by the squared error on a fifth of an
    experience's training samples, of a fit on the others; then all are used. The paper fits on the others of the same
    experience, this head on those of earlier ones too. Which samples are held out depends on their order, and nothing
    else does. The error comes from sums over the samples held out, so none is kept; they take as many bytes again
    while an experience is learned, and are part of `learned` afterwards.

    Args:
        features: F.
        classes: C, the most that can come.
        strength: of the penalty, absolute, as scikit-learn's `alpha`; None to choose it.
        width: M; None for the features themselves.

    Buffers:
        strength: fp64, as given or as it was chosen last.
        projection: `[F, M]` fp32, or `[F, 0]` without one.
        learned, held: statistics, see `ClassCovariance`.
    """

    projection: Tensor

    def __init__(self, *, features: int, classes: int, strength: float | None = None, width: int | None = None) -> None:
        summed = (features if width is None else width, classes)
        super().__init__(features=features, classes=classes, strength=strength, summed=summed)
        self.width = width
        self.register_buffer("projection", torch.randn(features, width or 0, dtype=torch.float32))

    @property
    def seen(self) -> Tensor:
        """Samples of each class so far, `[C]` int64."""
        return self.learned.counts if self.held is None else self.learned.counts + self.held.counts

    def _learn(self, x: Tensor, y: Tensor) -> None:
        self._keep(self._lift(x), y)

    def _lift(self, x: Tensor) -> Tensor:
        return x if self.width is None else (x @ self.projection).relu()

    def _prepare(self) -> tuple[Tensor, Tensor]:
        """Weights `[M, C]` and constants `[C]` of the linear scores."""
        statistics, strength = self.learned, float(self.strength)
        if self.held is not None and self.held.tokens:
            strength = self._chosen()
            statistics = copy.deepcopy(statistics)
            statistics.merge_(self.held)
        origin, prior = self._origin(statistics)
        weights = _solve(*_sums(statistics, origin), strength)
        return weights, prior - origin @ weights

    def _scores(self, x: Tensor, prepared: tuple[Tensor, Tensor]) -> Tensor:
        weights, constants = prepared
        return self._lift(x).double() @ weights + constants

    def _origin(self, statistics: ClassCovariance) -> tuple[Tensor, Tensor]:
        """What is taken off features `[M]` and targets `[C]`: their means, or nothing."""
        mean, prior = statistics.mean(), statistics.counts / statistics.counts.sum().clamp(min=1).double()
        return (mean, prior) if self.width is None else (torch.zeros_like(mean), torch.zeros_like(prior))

    def _chosen(self) -> float:
        """The strength whose fit on `learned` has the least squared error on `held`."""
        assert self.held is not None
        if not self.learned.tokens:
            return float(self.strength)
        origin, prior = self._origin(self.learned)
        gram, cross = _sums(self.learned, origin)
        held_gram, held_cross = _sums(self.held, origin)
        held_cross = held_cross - held_cross.sum(1, keepdim=True) * prior
        errors = {}
        for strength in STRENGTHS:  # but for the sum of squared targets, which all have
            weights = _solve(gram, cross, strength)
            errors[strength] = float((weights * (held_gram @ weights - 2 * held_cross)).sum())
        return min(errors, key=errors.__getitem__)


def _sums(statistics: ClassCovariance, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over samples of `(x - origin) (x - origin)^T` `[M, M]` and of `(x - origin) y^T` `[M, C]`."""
    away = statistics.means - origin
    cross = (statistics.counts[:, None] * away).mT
    return statistics.tokens * statistics.covariance() + cross @ away, cross


def _solve(gram: Tensor, cross: Tensor, strength: float) -> Tensor:
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(cross, cholesky(gram + strength * identity))
