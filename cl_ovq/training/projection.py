"""Gradients that must not raise the loss on past samples: GEM and A-GEM."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.storage_policy import ExperienceBalancedBuffer
from scipy.optimize import nnls
from torch import Tensor

from cl_ovq.training.augmentation import augmented
from cl_ovq.training.passes import evaluating, gradient, logits_of, step_ends, trained
from cl_ovq.training.replay import Memory, MemoryBatch
from streams import Samples


class _Projection(SupervisedPlugin):
    """Changes the gradient of each step by those of past samples, as many of each past experience as of another.

    Args:
        size: past samples kept, of all experiences together.
        samples: the stream's samples.
    """

    STATE = ("memory",)  # of a checkpoint

    def __init__(self, size: int, samples: Samples) -> None:
        super().__init__()
        self.memory = Memory(ExperienceBalancedBuffer(size), samples)
        self.references: list[Tensor] = []

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Find the gradients of past samples, before the step's own pass."""
        self.references = []
        if len(self.memory) and step_ends(strategy):
            with evaluating(strategy.model):  # what must not rise is the loss of the model that will answer
                self.references = [self._flat(strategy, batch) for batch in self.batches(strategy)]

    @torch.no_grad()
    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Change the gradient where it would raise the loss on past samples."""
        if not self.references:
            return
        weights = trained(strategy.model).values()
        parts = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        found = torch.cat([part.flatten() for part in parts])
        references = torch.stack(self.references)
        if not (references @ found < 0).any():
            return
        changed = self.project(found, references).split([w.numel() for w in weights])
        for weight, part in zip(weights, changed, strict=True):
            weight.grad = part.view_as(weight).clone()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Keep samples of the experience, and no gradient."""
        self.references = []
        self.memory.take(strategy.experience)

    def batches(self, strategy: Any) -> list[MemoryBatch]:
        """Return the past samples of each reference gradient."""
        raise NotImplementedError

    def project(self, found: Tensor, references: Tensor) -> Tensor:
        """Change a gradient `[P]` that points against one of the references `[R, P]`."""
        raise NotImplementedError

    def _flat(self, strategy: Any, batch: MemoryBatch) -> Tensor:
        loss = strategy._criterion(logits_of(strategy.model, augmented(strategy, batch.x), batch.tasks), batch.y)
        return torch.cat([part.flatten() for part in gradient(strategy.model, loss).values()])


class EpisodicGradients(_Projection):
    """GEM (Lopez-Paz and Ranzato 2017): one constraint for each past experience, on all of its samples.

    Args:
        size: past samples kept.
        samples: the stream's samples.
        margin: gamma, by which the multipliers are raised to favour backward transfer.
    """

    def __init__(self, size: int, samples: Samples, margin: float) -> None:
        super().__init__(size, samples)
        self.margin = margin

    def batches(self, strategy: Any) -> list[MemoryBatch]:
        """Return the samples of each past experience."""
        sizes = [len(buffer) for buffer in self.memory.storage_policy.buffer_datasets]
        parts = torch.arange(len(self.memory)).split(sizes)
        return [self.memory.at(positions, strategy.device) for positions in parts if len(positions)]

    def project(self, found: Tensor, references: Tensor) -> Tensor:
        """Return the nearest gradient that no past experience objects to."""
        v = nearest_multipliers(references.double().cpu().numpy(), found.double().cpu().numpy(), self.margin)
        return found + torch.from_numpy(v).to(found) @ references


def nearest_multipliers(references: np.ndarray, found: np.ndarray, margin: float) -> np.ndarray:
    """Solve GEM's dual problem: `min_v v' (G G' + 0.001 I) v / 2 + (G g)' v` with `v >= margin` (equation 11).

    With `v = margin + u` and a Cholesky factor of the matrix it is a problem of non-negative least squares, which
    SciPy solves exactly.

    Args:
        references: G `[R, P]`.
        found: g `[P]`.
        margin: the least multiplier.
    """
    matrix = references @ references.T + 1e-3 * np.eye(len(references))
    linear = references @ found + matrix.sum(1) * margin
    factor = np.linalg.cholesky(matrix)
    return margin + nnls(factor.T, -np.linalg.solve(factor, linear))[0]


class AverageGradients(_Projection):
    """A-GEM (Chaudhry et al. 2019, arXiv 1812.00420): one constraint, on a batch of past samples.

    Args:
        size: past samples kept.
        samples: the stream's samples.
        batch_size: past samples of a reference gradient.
    """

    def __init__(self, size: int, samples: Samples, batch_size: int) -> None:
        super().__init__(size, samples)
        self.batch_size = batch_size

    def batches(self, strategy: Any) -> list[MemoryBatch]:
        """Return one batch of all past experiences."""
        return [self.memory.draw(self.batch_size, strategy.device)]

    def project(self, found: Tensor, references: Tensor) -> Tensor:
        """Take off the part that points against the reference (equation 11)."""
        (reference,) = references
        return found - (found @ reference) / (reference @ reference) * reference
