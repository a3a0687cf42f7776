"""The memory head: a classifier that learns without gradients, by remembering.

Letters: `B` samples, `F` features, `C` classes, `N` capacity, `S` slots of a class (N // C), `L` chunk.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import kernels
from cl_ovq.models.read_out import Reading, Settings, default_beta, log_probabilities, magnitude, scores, similarities
from cl_ovq.models.slots import ClassSlots
from cl_ovq.models.whitening import ClassCovariance, keep_type, whitening
from kernels import DictionaryOptions, DictionaryState

PRIORS = ("balanced", "counts")


class MemoryHead(nn.Module):
    """Classes as Gaussian mixtures with one shared covariance, learned online: GMR with labels as values.

    Each class has S slots (`ClassSlots`): counts, and means of the features given to them; a slot's value is its
    class. A query's class probabilities are the conditional mean of the mixture (Gaussian mixture regression, the
    operator's read-out `gmr`): a softmax over slots of `beta log N(x; mu_i, Sigma) + log c_i`, summed over the slots
    of each class. Sigma is the running covariance *within classes* (`ClassCovariance`), shrunk towards a multiple of
    the identity: a read whitens queries and slots. With one slot a class this is linear discriminant analysis, with
    many mixture discriminant analysis (Hastie and Tibshirani 1996), in one pass. `class_weight` multiplies in a power
    of the streaming LDA (Hayes and Kanan 2020, arXiv 1909.01520) that the same statistics give.

    Means stay in the space of the features and a write looks for the nearest one there, which measures better than
    whitened: nothing stored depends on when the covariance was estimated. Writes happen on a grid of L samples
    counted from the first; the rest waits, and is read as if its chunk had closed. So the head does not depend on the
    batches in which samples come, down to single ones. It needs no task label, no gradient and no second pass, and
    classes may come at any time. Only `observe`, `merge_`, `resize_` and `forget` write.

    Args:
        features: F.
        classes: C, the most that can come.
        capacity: N, slots of all classes together; each class has N // C.
        chunk_size: L.
        growth: schedule of a class's slots over its own samples, a name in `slots.GROWTH`.
        beta: inverse temperature; None for `default_beta`. `calibrate` chooses it on validation data.
        shrinkage: of the covariance, from 0 to 1; `calibrate` chooses it too.
        class_weight: power of the LDA; likewise.
        confidence: power of the class probabilities, which are too sure of themselves at the beta that decides best;
            likewise.
        normalise: scale every feature vector to length sqrt(F) first.
        prior: of classes: all seen alike (`balanced`) or by samples seen (`counts`).
        storage: of the means: `float32`, `float16` or `int8`.
        growth_rate: slots per sample of a class, of `linear` growth.
        concentration: alpha of `dirichlet` growth.

    Raises:
        ValueError: naming the argument and what is allowed.
    """

    pending_features: Tensor
    pending_targets: Tensor
    pending: Tensor
    chosen: Tensor

    def __init__(
        self,
        *,
        features: int,
        classes: int,
        capacity: int,
        chunk_size: int = 32,
        growth: str = "plateau",
        beta: float | None = None,
        shrinkage: float = 0.3,
        class_weight: float = 0.05,
        confidence: float = 0.6,
        normalise: bool = True,
        prior: str = "balanced",
        storage: str = "float32",
        growth_rate: float = 0.125,
        concentration: float = 128.0,
    ) -> None:
        super().__init__()
        for name, size in (("features", features), ("classes", classes), ("chunk_size", chunk_size)):
            if size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        if capacity < classes:
            raise ValueError(f"capacity must be at least one slot per class ({classes}), got {capacity}")
        if prior not in PRIORS:
            raise ValueError(f"unknown prior {prior!r}: known: {', '.join(PRIORS)}")
        beta = default_beta(features) if beta is None else beta
        settings = Settings(beta, shrinkage, class_weight, confidence)
        if not (beta > 0 and confidence > 0 and 0 <= shrinkage <= 1 and class_weight >= 0):
            raise ValueError(
                f"beta and confidence must be positive, shrinkage in [0, 1], class_weight not negative: {settings}"
            )
        self.features, self.classes, self.capacity = features, classes, capacity
        self.chunk_size, self.prior, self.normalise = chunk_size, prior, normalise
        self.covariance = ClassCovariance(features=features, classes=classes)
        schedule = DictionaryOptions(
            capacity=capacity // classes, growth=growth, growth_rate=growth_rate, concentration=concentration
        )
        self.slots = ClassSlots(features=features, classes=classes, options=schedule, storage=storage)
        self.register_buffer("pending_features", torch.zeros(chunk_size, features, dtype=torch.float32))
        self.register_buffer("pending_targets", torch.zeros(chunk_size, dtype=torch.int64))
        self.register_buffer("pending", torch.zeros((), dtype=torch.int64))
        self.register_buffer("chosen", torch.tensor(settings, dtype=torch.float64))
        self._cache: Reading | None = None

    @property
    def size(self) -> int:
        """Slots in use."""
        return int((self.slots.counts > 0).sum())

    @property
    def tokens(self) -> int:
        """Samples remembered, pending ones too."""
        return int(self.covariance.counts.sum() + self.pending)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept: slots, covariance, pending samples. What a read makes of them is not counted."""
        return sum(t.numel() * t.element_size() for t in self.buffers())

    @property
    def settings(self) -> Settings:
        """As given, or as `calibrate` chose them."""
        return Settings(*self.chosen.tolist())

    @property
    def state(self) -> DictionaryState:
        """The dictionary of the chunks that have closed, see `ClassSlots.state`."""
        return self.slots.state

    @torch.no_grad()
    def observe(self, features: Tensor, targets: Tensor) -> None:
        """Write samples, in their order.

        Args:
            features: `[B, F]`, any floating type; B may be one or none.
            targets: `[B]` integers from 0 to C - 1.

        Raises:
            ValueError: where shapes or labels do not fit, or a feature is not finite; nothing is written then.
        """
        x = self._checked(features)
        y = self._checked_targets(targets, len(x))
        self._cache = None
        fill = int(self.pending)
        while len(y):
            taken = min(self.chunk_size - fill, len(y))
            self.pending_features[fill : fill + taken] = x[:taken]
            self.pending_targets[fill : fill + taken] = y[:taken]
            fill, x, y = fill + taken, x[taken:], y[taken:]
            if fill == self.chunk_size:
                self._write(self.pending_features, self.pending_targets)
                fill = 0
        self.pending.fill_(fill)

    @torch.no_grad()
    def merge_(self, other: MemoryHead) -> None:
        """Take in what another head learned from other samples; a class's slots that do not fit unite by Ward's rule.

        Raises:
            ValueError: the other has other features, classes or slots.
        """
        if other.slots.means.shape != self.slots.means.shape:
            raise ValueError(
                f"only heads of equal slots and features merge, these have [C, S, F] = {list(self.slots.means.shape)} "
                f"and {list(other.slots.means.shape)}"
            )
        merged = kernels.merge(self.state, other.state)
        self.slots.replace(merged.counts.squeeze(1), merged.keys.squeeze(1))
        self.covariance.merge_(other.covariance)
        self._cache = None
        self.observe(*other._waiting())

    @torch.no_grad()
    def resize_(self, capacity: int) -> None:
        """Change the number of slots of all classes together; a class's slots that do not fit unite by Ward's rule.

        Raises:
            ValueError: fewer than one slot per class.
        """
        if capacity < self.classes:
            raise ValueError(f"capacity must be at least one slot per class ({self.classes}), got {capacity}")
        self.capacity = capacity
        self.slots.resize_(capacity // self.classes)
        self._cache = None

    @torch.no_grad()
    def forget(self, classes: Iterable[int]) -> None:
        """Remove slots, mean and pending samples of these classes, which may come again.

        The covariance within classes is shared, and keeps their part.
        """
        gone = torch.zeros(self.classes, dtype=torch.bool, device=self.pending.device)
        gone[list(classes)] = True
        self.slots.clear(gone)
        self.covariance.counts[gone] = 0
        self.covariance.means[gone] = 0
        x, y = self._waiting()
        self.pending.zero_()
        self._cache = None
        self.observe(x[~gone[y]], y[~gone[y]])

    def drop_prepared(self) -> None:
        """Let go of what reads have computed; the next one computes it anew."""
        self._cache = None

    def _write(self, x: Tensor, y: Tensor) -> None:
        """Write a chunk, features `[L, F]` fp32 and targets `[L]`."""
        turn = int(self.covariance.tokens) // self.chunk_size
        self.slots.write(x, y, self.covariance.counts, turn)
        self.covariance.update(x, y)

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[B, F]` to log-probabilities `[B, C]` fp32.

        A class not seen has the probability `FLOOR` / C; an empty memory gives 1 / C to all.
        Gradients reach the features, not the memory.

        Raises:
            ValueError: where the shape does not fit.
        """
        x = self._checked(features)
        settings = self.settings
        reading = self._cache = self._cache or self._reading(settings.shrinkage)
        scored = [scores(*part, reading, settings.beta, settings.class_weight) for part in similarities(x, reading)]
        return log_probabilities(torch.cat(scored), reading, settings.confidence)

    @torch.no_grad()
    def calibrate(
        self,
        features: Tensor,
        targets: Tensor,
        *,
        betas: Sequence[float] | None = None,
        shrinkages: Sequence[float] = (0.01, 0.03, 0.1, 0.2, 0.4),
        class_weights: Sequence[float] = (0.0, 0.05, 0.1),
        confidences: Sequence[float] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.3),
        most: int = 2000,
    ) -> float:
        """Choose the settings by the likelihood of validation data, which is not written.

        Args:
            features: `[B, F]` of classes seen so far.
            targets: `[B]`.
            betas: to choose from; None for a quarter to four times `default_beta`.
            shrinkages: to choose from; one costs a whitening.
            class_weights: to choose from.
            confidences: to choose from.
            most: samples used, evenly taken from those given.

        Returns:
            The mean negative log-likelihood in nats.

        Raises:
            ValueError: where shapes or labels do not fit, or no sample is given.
        """
        x = self._checked(features)
        y = self._checked_targets(targets, len(x))
        if len(y) == 0:
            raise ValueError("calibration needs at least one sample")
        taken = torch.linspace(0, len(y) - 1, min(most, len(y)), device=y.device).round().long()
        x, y = x[taken], y[taken]
        if betas is None:
            betas = [default_beta(self.features) * 2 ** (i / 2) for i in range(-4, 5)]
        best, chosen, self._cache = math.inf, self.settings, None
        for shrinkage in shrinkages:
            reading = self._reading(shrinkage)
            parts = list(similarities(x, reading))
            for beta, weight in itertools.product(betas, class_weights):
                scored = torch.cat([scores(*part, reading, beta, weight) for part in parts])
                for confidence in confidences:
                    loss = float(nn.functional.nll_loss(log_probabilities(scored, reading, confidence), y))
                    if loss < best:
                        best, self._cache = loss, reading
                        chosen = Settings(beta, shrinkage, weight, confidence)
        self.chosen.copy_(torch.tensor(chosen, dtype=torch.float64))
        return best

    def extra_repr(self) -> str:
        """What a printed model says of this head."""
        return f"features={self.features}, classes={self.classes}, capacity={self.capacity}, {self.settings}"

    @torch.no_grad()
    def _reading(self, shrinkage: float) -> Reading:
        """The state as a read-out uses it, with the pending samples written into a copy."""
        head = self
        if int(self.pending):
            head = copy.deepcopy(self)
            head._write(*head._waiting())
        samples = head.covariance.counts
        mean = head.covariance.mean()
        whiten = whitening(head.covariance.covariance(), shrinkage).float()
        unseen = samples == 0
        weights = (head.slots.counts.float() / samples.clamp(min=1)[:, None]).log().masked_fill(unseen[:, None], 0.0)
        prior = (samples if head.prior == "counts" else ~unseen).float().log()
        if unseen.all():  # every class alike
            prior = torch.zeros_like(prior)
        return Reading(
            origin=mean.float(),
            whiten=whiten,
            slots=(head.slots.read() - mean.float()) @ whiten,
            weights=weights,
            means=(head.covariance.means - mean).float() @ whiten,
            prior=prior,
        )

    def _waiting(self) -> tuple[Tensor, Tensor]:
        """Copies of the pending features and targets."""
        fill = int(self.pending)
        return self.pending_features[:fill].clone(), self.pending_targets[:fill].clone()

    def _checked(self, features: Tensor) -> Tensor:
        if features.dim() != 2 or features.shape[1] != self.features or not features.is_floating_point():
            raise ValueError(
                f"features must be floating [B, {self.features}], got {features.dtype} {list(features.shape)}"
            )
        if not features.isfinite().all():
            raise ValueError("features must be finite: a memory would keep a NaN for ever")
        x, length = features.float(), math.sqrt(self.features)
        return nn.functional.normalize(x / magnitude(x, rows=True)) * length if self.normalise else x

    def _checked_targets(self, targets: Tensor, samples: int) -> Tensor:
        if targets.shape != (samples,) or targets.is_floating_point():
            raise ValueError(f"targets must be integers [{samples}], got {targets.dtype} {list(targets.shape)}")
        low, high = (int(targets.min()), int(targets.max())) if samples else (0, 0)
        if low < 0 or high >= self.classes:
            raise ValueError(f"targets must lie in 0 .. {self.classes - 1}, got {low} .. {high}")
        return targets.to(self.pending.device, torch.int64)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MemoryHead:
        """Move to another device, but keep the types; a reading stays where nothing moves, see `GradientFreeHead`."""
        before = list(self.buffers())
        super()._apply(keep_type(fn), recurse)
        if any(new is not old for new, old in zip(self.buffers(), before, strict=True)):
            self._cache = None
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._cache = None
        super()._load_from_state_dict(*arguments)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}  # copies and pickles make their own
