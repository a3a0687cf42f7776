"""A running covariance of features within classes, and the whitening that it gives.

Letters: `B` samples, `F` features, `C` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

_STRIP = 64  # rows of a strip: the scatter takes F^2 / 2 + 32 F numbers


class ClassCovariance(nn.Module):
    """Class means and the pooled covariance within classes, exact whatever the batches in which samples come.

    These are the sufficient statistics of linear discriminant analysis (LDA) and of streaming LDA (Hayes and Kanan
    2020, arXiv 1909.01520). Sums of squared deviations are combined as Chan, Golub and LeVeque do (1979), in fp64, so
    that features far from zero lose nothing. Of the symmetric scatter only the upper half is kept: the bytes of a
    full matrix in fp32. With one class this is the ordinary covariance.

    Args:
        features: F.
        classes: C, the most that can come.

    Buffers:
        counts: `[C]` int64, samples of each class.
        means: `[C, F]` fp64, class means; zero for a class not seen.
        scatter: fp64, sum over samples of d d^T, d = x - mean of its class, as strips of its upper half.
        tokens: int64, samples in the scatter.
    """

    counts: Tensor
    means: Tensor
    scatter: Tensor
    tokens: Tensor

    def __init__(self, *, features: int, classes: int) -> None:
        super().__init__()
        self.features = features
        size = sum(rows * columns for _, rows, columns in self._shapes())
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("means", torch.zeros(classes, features, dtype=torch.float64))
        self.register_buffer("scatter", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("tokens", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClassCovariance:
        """Move to another device, but keep the types."""
        return super()._apply(keep_type(fn), recurse)

    @torch.no_grad()
    def update(self, features: Tensor, targets: Tensor) -> None:
        """Take in samples.

        Args:
            features: `[B, F]`.
            targets: `[B]` int64, below C.
        """
        if len(targets) == 0:
            return
        x = features.double()
        classes, which = targets.unique(return_inverse=True)
        new = torch.bincount(which, minlength=len(classes))
        means = x.new_zeros(len(classes), self.features).index_add_(0, which, x - self.means[targets])
        means = self.means[classes] + means / new[:, None]
        self._combine(classes, new, means, x - means[which])
        self.tokens += len(targets)

    def merge_(self, other: ClassCovariance) -> None:
        """Take in all that another has seen, as if its samples had come here.

        Raises:
            ValueError: it has other features or classes.
        """
        if other.means.shape != self.means.shape:
            raise ValueError(
                f"statistics of [C, F] = {list(other.means.shape)} cannot join those of {list(self.means.shape)}"
            )
        classes = other.counts.nonzero().squeeze(1)
        self._combine(classes, other.counts[classes], other.means[classes], other.means[:0])
        self.scatter += other.scatter
        self.tokens += other.tokens

    def covariance(self) -> Tensor:
        """Pooled covariance within classes `[F, F]` fp64 (divided by the number of samples); zero before any."""
        full = self.scatter.new_zeros(self.features, self.features)
        for start, strip in self._strips():
            full[start : start + len(strip), start:] = strip
        return (full.triu() + full.triu(1).mT) / self.tokens.clamp(min=1)

    def mean(self) -> Tensor:
        """Mean of all samples `[F]` fp64; zero before any."""
        return self.counts.double() @ self.means / self.counts.sum().clamp(min=1)

    def _combine(self, classes: Tensor, new: Tensor, means: Tensor, deviations: Tensor) -> None:
        """Add `new` samples of `classes`, with these means and these deviations `[B, F]` from them."""
        old = self.counts[classes]
        weight = (new.double() / (old + new))[:, None]
        step = means - self.means[classes]
        rows = torch.cat([deviations, step * (old[:, None] * weight).sqrt()])
        for start, strip in self._strips():
            strip.addmm_(rows[:, start : start + len(strip)].mT, rows[:, start:])
        self.means[classes] += weight * step
        self.counts[classes] += new

    def _shapes(self) -> Iterator[tuple[int, int, int]]:
        """First row, number of rows and of columns of each strip; the columns reach from the first row to the end."""
        for start in range(0, self.features, _STRIP):
            yield start, min(_STRIP, self.features - start), self.features - start

    def _strips(self) -> Iterator[tuple[int, Tensor]]:
        sizes = [rows * columns for _, rows, columns in self._shapes()]
        for (start, rows, columns), strip in zip(self._shapes(), self.scatter.split(sizes), strict=True):
            yield start, strip.view(rows, columns)


def keep_type(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap what `nn.Module._apply` is given so that it moves but does not cast: sums in fp64 outlive `model.half()`."""

    def kept(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return kept


def whitening(covariance: Tensor, shrinkage: float) -> Tensor:
    """`W [F, F]` fp64 such that `x W` has the identity as covariance, once the covariance is shrunk.

    `(1 - shrinkage) covariance + shrinkage trace / F I`, the formula of scikit-learn's `shrunk_covariance`. Without
    shrinkage directions without variance would be infinitely important; with much of it distances become Euclidean.

    Args:
        covariance: `[F, F]` symmetric; one that is zero whitens nothing.
        shrinkage: from 0 to 1; at least 1e-6 is used.
    """
    size = len(covariance)
    shrinkage = max(float(shrinkage), 1e-6)
    variance = covariance.trace() / size
    identity = torch.eye(size, dtype=torch.float64, device=covariance.device)
    if not variance > 0:
        return identity
    factor = torch.linalg.cholesky((1 - shrinkage) * covariance.double() + shrinkage * variance * identity)
    return torch.linalg.solve_triangular(factor.mT, identity, upper=True)
