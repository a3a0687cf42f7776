"""Nearest neighbours among samples kept within a budget.

Letters: `B` samples, `F` features, `C` classes, `N` samples kept at most, `n` samples at hand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cl_ovq.models.gradient_free import GradientFreeHead
from cl_ovq.models.read_out import magnitude
from streams.counter_rng import Draws

_DISTANCES = 1 << 22  # held at once


class NearestNeighbours(GradientFreeHead):
    """Votes of the k nearest samples kept (Cover and Hart 1967), by Euclidean distance; ties go to the lowest class.

    Every sample draws a random number when it comes. Where they do not all fit, those are kept that have the highest
    numbers of their class, of all classes as many as can be: a class-balanced reservoir, which does not depend on the
    batches in which samples come, and takes room from old classes only when new ones need it. Up to N samples, the
    order does not matter either.

    Args:
        features: F.
        classes: C, the most that can come.
        capacity: N.
        neighbours: k.

    Buffers:
        samples: `[N, F]` fp32, in the order in which they came.
        targets: `[N]` int64, -1 where nothing is kept yet.
        numbers: `[N]` int64, what each sample drew.
        counts: `[C]` int64, samples of each class that came.
        seed: int64, drawn from the generator that draws a model's weights.
    """

    samples: Tensor
    targets: Tensor
    numbers: Tensor
    counts: Tensor
    seed: Tensor

    def __init__(self, *, features: int, classes: int, capacity: int = 2000, neighbours: int = 5) -> None:
        super().__init__(features=features, classes=classes)
        self.capacity, self.neighbours = capacity, neighbours
        self.register_buffer("samples", torch.zeros(capacity, features, dtype=torch.float32))
        self.register_buffer("targets", torch.full((capacity,), -1, dtype=torch.int64))
        self.register_buffer("numbers", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("seed", torch.randint(2**62, (), dtype=torch.int64))

    @property
    def seen(self) -> Tensor:
        """Samples of each class so far, `[C]` int64."""
        return self.counts

    @property
    def size(self) -> int:
        """Samples kept."""
        return int((self.targets >= 0).sum())

    def _learn(self, x: Tensor, y: Tensor) -> None:
        draws = Draws("nearest neighbours", int(self.seed))
        draws.skip(self.tokens)
        numbers = torch.from_numpy((draws.bits(len(y)) >> 1).astype("int64")).to(y.device)
        self.counts += torch.bincount(y, minlength=self.classes)
        size = self.size
        targets = torch.cat([self.targets[:size], y])
        numbers = torch.cat([self.numbers[:size], numbers])
        kept = _kept(targets, numbers, self.capacity)
        old, new = kept[kept < size], kept[kept >= size]
        if len(new) == 0:
            return
        if len(old) < size:  # close the gaps
            self.samples[: len(old)] = self.samples[old]
        self.samples[len(old) : len(kept)] = x[new - size]
        self.targets[: len(kept)] = targets[kept]
        self.numbers[: len(kept)] = numbers[kept]

    def _prepare(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Origin `[F]`, scale, samples in these terms `[n, F]`, and one-hot targets `[n, C]`.

        Squares far from zero lose precision, and those of large numbers overflow.
        """
        samples, targets = self.samples[: self.size], self.targets[: self.size]
        origin = samples.mean(0)
        samples = samples - origin
        scale = magnitude(samples)
        return origin, scale, samples / scale, torch.nn.functional.one_hot(targets, self.classes).float()

    def _scores(self, x: Tensor, prepared: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        origin, scale, samples, votes = prepared
        nearest, lengths = min(self.neighbours, len(samples)), samples.square().sum(1) / 2
        parts = ((x - origin) / scale).split(max(1, _DISTANCES // len(samples)))
        chosen = (torch.addmm(-lengths, part, samples.mT).topk(nearest, dim=1).indices for part in parts)
        return torch.cat([votes[indices].sum(1) for indices in chosen])


def sample_bytes(features: int) -> int:
    """Return the bytes of a sample that is kept: features, target, number."""
    return 4 * features + 16


def _kept(targets: Tensor, numbers: Tensor, capacity: int) -> Tensor:
    """Return which samples stay, indices in ascending order.

    First come the samples of the highest number of each class, then those of the second, until all room is taken. A
    sample that is left out once never comes back: those before it only become more.
    """
    if len(targets) <= capacity:
        return torch.arange(len(targets), device=targets.device)
    order = numbers.argsort(descending=True)
    order = order[targets[order].argsort(stable=True)]  # by class, and within it by number
    classes = torch.bincount(targets)
    first = (classes.cumsum(0) - classes)[targets[order]]
    rank = torch.arange(len(order), device=order.device) - first
    again = numbers[order].argsort(descending=True)
    again = again[rank[again].argsort(stable=True)]
    return order[again[:capacity]].sort().values
