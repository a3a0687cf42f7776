"""Classifier alignment: the head is trained on features drawn from a Gaussian of each class.

Letters: `n` classes so far, `F` features.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.models.heads import unwrap
from cl_ovq.seeding import derive_seed
from cl_ovq.training.passes import evaluating
from cl_ovq.training.plugin import nbytes_of
from cl_ovq.training.prompts import ExperienceAlone
from streams import Stream, rows_of

if TYPE_CHECKING:
    from cl_ovq.strategies.alignment import SLCAOptions

MOMENTUM, DECAY = 0.9, 5e-4  # of the alignment's gradient descent, as in the published code
JITTER = 1e-6  # share of the mean variance that is added, where a class has fewer samples than features


class ClassifierAlignment(ExperienceAlone):
    """SLCA (Zhang et al. 2023, arXiv 2303.05118): the mean and covariance of each class's features train the head.

    They are those that the encoder has when the class's experience ends, in evaluation mode and of plain images; where
    a class comes again they are of all its samples. After each experience but the first the head learns features that
    are drawn from them, as many of each class, by the cross-entropy of logits that are divided by their length and
    a temperature, with a rate that falls to zero as a cosine over the epochs.

    Args:
        options: of the strategy.
        model: that will be trained.
        stream: what is learned.
        seed: of the run, from which draws follow.
    """

    STATE = ("classes", "counts", "means", "covariances")  # of a checkpoint

    def __init__(self, options: SLCAOptions, model: nn.Module, stream: Stream, seed: int) -> None:
        super().__init__()
        self.options = options
        self.samples = stream.samples
        self.seed = seed
        self.classes = torch.empty(0, dtype=torch.int64)
        self.counts = torch.empty(0, dtype=torch.int64)
        width = self._features(model, torch.zeros(1, dtype=torch.int64), next(model.parameters()).device).shape[1]
        self.means = torch.empty(0, width)
        self.covariances = torch.empty(0, width, width)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the statistics."""
        return nbytes_of([getattr(self, name) for name in self.STATE])

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Add the experience to the statistics, and align the head."""
        experience = strategy.clock.train_exp_counter
        rows = rows_of(strategy.experience.dataset)
        parts = rows.split(strategy.eval_mb_size)
        features = torch.cat([self._features(strategy.model, part, strategy.device) for part in parts])
        targets = self.samples.targets[rows]
        for label in targets.unique().tolist():
            self.add(label, features[targets == label])
        if experience and self.options.align_epochs:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, f"alignment/{experience}"))
            self.align(unwrap(strategy.model).head, generator)

    @torch.no_grad()
    def _features(self, model: nn.Module, rows: Tensor, device: torch.device) -> Tensor:
        """Return the features `[N, F]` of samples `[N]`, on the CPU."""
        with evaluating(model):
            found: Tensor = unwrap(model).features(self.samples.gather(rows).to(device))
        return found.cpu()

    def add(self, label: int, features: Tensor) -> None:
        """Add samples of a class to its statistics.

        Args:
            label: the class.
            features: `[N, F]`.
        """
        x = features.double()
        count, mean, covariance = len(x), x.mean(0), torch.cov(x.T, correction=0).view(x.shape[1], -1)
        place = (self.classes == label).nonzero().flatten()
        if not len(place):
            self.classes = torch.cat([self.classes, torch.tensor([label])])
            self.counts = torch.cat([self.counts, torch.tensor([count])])
            self.means = torch.cat([self.means, mean[None].float()])
            self.covariances = torch.cat([self.covariances, covariance[None].float()])
            return
        (at,) = place.tolist()
        before, away = int(self.counts[at]), mean - self.means[at].double()
        share = count / (before + count)
        within = torch.lerp(self.covariances[at].double(), covariance, share)
        self.counts[at] = before + count
        self.means[at] = (self.means[at].double() + share * away).float()
        self.covariances[at] = (within + share * (1 - share) * away.outer(away)).float()

    def draw(self, factors: list[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw features of all classes `[n * align_samples, F]`, and the numbers of these classes, in random order.

        Args:
            factors: see `factor`, one of each class.
            generator: of random numbers.
        """
        count, width = self.options.align_samples, self.means.shape[1]
        found = [
            mean + torch.randn(count, width, generator=generator) @ root.T
            for mean, root in zip(self.means, factors, strict=True)
        ]
        order = torch.randperm(count * len(found), generator=generator)
        return torch.cat(found)[order], torch.arange(len(found)).repeat_interleave(count)[order]

    @torch.enable_grad()
    def align(self, head: nn.Module, generator: torch.Generator) -> None:
        """Train the head on drawn features."""
        device = next(head.parameters()).device
        factors = [factor(covariance) for covariance in self.covariances]
        rate, epochs = self.options.align_learning_rate, self.options.align_epochs
        optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=MOMENTUM, weight_decay=DECAY)
        for epoch in range(epochs):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
            drawn = (part.split(self.options.align_samples) for part in self.draw(factors, generator))
            for features, targets in zip(*drawn, strict=True):
                logits = head(features.to(device))[:, self.classes.to(device)]
                loss = functional.cross_entropy(self.scaled(logits), targets.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        optimizer.zero_grad()

    def scaled(self, logits: Tensor) -> Tensor:
        """Divide logits `[B, n]` by their length and the temperature, unless there is none."""
        temperature = self.options.align_temperature
        return logits if temperature is None else functional.normalize(logits, dim=1) / temperature


def factor(covariance: Tensor) -> Tensor:
    """Return L with `L L'` a covariance `[F, F]`, and a little more variance where it is singular, fp32."""
    matrix = covariance.double()
    more = JITTER * float(matrix.diagonal().mean()) + torch.finfo(torch.float32).tiny
    return torch.linalg.cholesky(matrix + more * torch.eye(len(matrix), dtype=torch.float64)).float()
