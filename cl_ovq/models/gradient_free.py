"""What heads that learn without gradients have in common.

Letters: `B` samples, `F` features, `C` classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cl_ovq.models.read_out import FLOOR
from cl_ovq.models.whitening import keep_type


class GradientFreeHead(nn.Module, ABC):
    """A classifier of features that learns by counting, in one pass, in the place of a model's linear head.

    A subclass keeps its statistics in buffers, and says how samples enter them (`_learn`), what a read needs of them
    (`_prepare`, once after each write), and how that scores features (`_scores`).

    Args:
        features: F.
        classes: C, the most that can come.

    Attributes:
        settings: what else it was made with, by name, for it to be made again where a trained model is read.
    """

    def __init__(self, *, features: int, classes: int) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.features = features
        self.classes = classes
        self._prepared: Any = None

    @classmethod
    def made_again(cls, config: Any, **settings: Any) -> GradientFreeHead:
        """Make the head of a trained model, whose statistics are loaded then.

        Args:
            config: of its run.
            settings: `features`, `classes` and its `settings`.
        """
        return cls(**settings)

    @property
    @abstractmethod
    def seen(self) -> Tensor:
        """Samples of each class so far, `[C]` int64."""

    @abstractmethod
    def _learn(self, x: Tensor, y: Tensor) -> None:
        """Take in samples: features `[B, F]` fp32 and targets `[B]`, B at least one."""

    @abstractmethod
    def _prepare(self) -> Any:
        """Return what `_scores` needs, made from the statistics; only called once a sample has come."""

    @abstractmethod
    def _scores(self, x: Tensor, prepared: Any) -> Tensor:
        """Return scores `[B, C]` of features `[B, F]` fp32; those of classes not seen are not looked at."""

    @property
    def tokens(self) -> int:
        """Samples seen."""
        return int(self.seen.sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept from experience to experience; what a read makes of it is not counted."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @torch.no_grad()
    def observe(self, features: Tensor, targets: Tensor) -> None:
        """Take in samples.

        Args:
            features: `[B, F]`, any floating type; B may be one or none.
            targets: `[B]` int64, below C.

        Raises:
            ValueError: a feature is not finite; nothing is taken in then.
        """
        if len(targets) == 0:
            return
        if not features.isfinite().all():
            raise ValueError("features must be finite: statistics would keep a NaN for ever")
        self._prepared = None
        self._learn(features.float(), targets)

    def end_experience(self) -> None:
        """Say that an experience is over."""

    def drop_prepared(self) -> None:
        """Let go of what reads have computed; the next one computes it anew."""
        self._prepared = None

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[B, F]` to logits `[B, C]`: log-probabilities, less that of the likeliest class.

        So near zero, scores that hardly differ keep their order in any type. A class not seen has the probability
        `FLOOR / C`.
        """
        unseen = self.seen == 0
        if unseen.all():
            return features.new_zeros(len(features), self.classes).log_softmax(1)
        if self._prepared is None:
            with torch.no_grad():
                self._prepared = self._prepare()
        scores = self._scores(features.float(), self._prepared).double().masked_fill(unseen, -torch.inf)
        away = scores - scores.amax(1, keepdim=True)
        share = (1 - FLOOR) / away.exp().sum(1, keepdim=True)  # of the likeliest class
        return (share / (share + FLOOR / self.classes) * away.expm1()).log1p().to(features.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GradientFreeHead:
        """Move to another device, but keep the types. What was prepared stays where nothing moves.

        Avalanche moves a model before it evaluates an experience: preparing anew would be a solve for each of them.
        """
        before = list(self.buffers())
        super()._apply(keep_type(fn), recurse)
        if any(new is not old for new, old in zip(self.buffers(), before, strict=True)):
            self._prepared = None
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._prepared = None
        super()._load_from_state_dict(*arguments)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}  # copies and pickles make their own


class ValueHead(GradientFreeHead):
    """A head that tells a vector of a sample, in the place of its class: what `_scores` returns is the answer.

    `C` is the vector's size, and targets are `[B, C]`. `seen` is `[]` int64, and `_prepare` may be called before the
    first sample.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[B, F]` to vectors `[B, C]`."""
        if self._prepared is None:
            with torch.no_grad():
                self._prepared = self._prepare()
        return self._scores(features.float(), self._prepared).to(features.dtype)


def cholesky(matrix: Tensor) -> Tensor:
    """Return the lower Cholesky factor of a symmetric matrix `[F, F]` fp64 without negative eigenvalues.

    What rounding may have taken off its smallest eigenvalues is added first, so that a matrix of less than full rank
    has a factor too: `F eps trace`, which no other matrix notices.
    """
    size = len(matrix)
    floor = size * torch.finfo(matrix.dtype).eps * matrix.trace() + torch.finfo(matrix.dtype).tiny
    return torch.linalg.cholesky(matrix + floor * torch.eye(size, dtype=matrix.dtype, device=matrix.device))
