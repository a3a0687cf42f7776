"""The slots of the memory head: per class, counts and running means, in as many bits as asked for.

Letters: `L` samples written together, `F` features, `C` classes, `S` slots of a class, `n` slots looked at.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

import kernels
from cl_ovq.models.read_out import magnitude
from kernels import DictionaryOptions, DictionaryState
from kernels.growth import target_size

STORAGE = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
RANGES = {"float32": 0, "float16": 1, "int8": 2}  # numbers beside each mean
GROWTH = ("plateau", "all", "linear", "dirichlet")  # `novelty` comes by itself: growth resumes with every new class

_LEVELS = 255  # steps of int8 storage
_LOWEST = -128
_TOGETHER = 2**20  # numbers that are compared with at a time
_GOLDEN, _PLASTIC = 0.6180339887498949, 0.7548776662466927  # multiples modulo one fill [0, 1) evenly


class ClassSlots(nn.Module):
    """Up to S slots for each class, every one the running mean of the samples of its class that were nearest to it.

    Slots are numbered over all classes: slot s of class c is `c S + s`, so a slot's number tells its value. What a
    class has in use grows with the number of its own samples; the sample at which the schedule steps up becomes the
    new slot, and every other goes to the nearest, by Euclidean distance. Old classes neither lose slots to new ones
    nor use up theirs.

    The operator's `update` cannot serve: it normalises keys, compares by dot product, and looks at all slots where
    here the class is known. `state` gives the dictionary as a `DictionaryState` to whole-dictionary operations and
    metrics.

    Args:
        features: F.
        classes: C.
        options: S is their `capacity`, and `growth` is a name in `GROWTH`; nothing else of them is used.
        storage: a name in `STORAGE`; int8 adds a lowest value and a step per slot, float16 an origin: what lies far
            from zero, and not far apart, would be rounded to one number.

    Buffers:
        counts: `[C, S]` int64, samples of each slot; zero in an empty one.
        means: `[C, S, F]` as stored.
        ranges: `[C, S, 2]` lowest value and step of int8 storage; `[C, S, 1]` origin of float16; `[C, S, 0]` otherwise.
    """

    counts: Tensor
    means: Tensor
    ranges: Tensor

    def __init__(self, *, features: int, classes: int, options: DictionaryOptions, storage: str) -> None:
        super().__init__()
        for name, choice, known in (("growth", options.growth, GROWTH), ("storage", storage, tuple(STORAGE))):
            if choice not in known:
                raise ValueError(f"unknown {name} {choice!r}: known: {', '.join(known)}")
        self.options, slots = options, options.capacity
        self.register_buffer("counts", torch.zeros(classes, slots, dtype=torch.int64))
        self.register_buffer("means", torch.zeros(classes, slots, features, dtype=STORAGE[storage]))
        ranges = torch.zeros(classes, slots, RANGES[storage], dtype=torch.float32)
        self.register_buffer("ranges", ranges)

    @property
    def state(self) -> DictionaryState:
        """The dictionary: a row per class, one head, means as keys (not normalised), one-hot values, fp32."""
        c, s, f = self.means.shape
        used = self.counts > 0
        values = torch.eye(c, dtype=torch.float32, device=used.device)[:, None] * used[..., None]  # [C, S, C]
        return DictionaryState.empty((c, 1, s, f, c), device=used.device).replace(
            counts=self.counts[:, None].clone(),
            keys=self.read()[:, None],
            values=values[:, None],
            size=used.sum(1, keepdim=True),
            tokens=self.counts.sum(1),
        )

    def read(self) -> Tensor:
        """All means `[C, S, F]` fp32."""
        return self._load(torch.arange(self.counts.numel(), device=self.counts.device)).view_as(self.means)

    def replace(self, counts: Tensor, means: Tensor) -> None:
        """Set all counts `[C, S]` and means `[C, S, F]`."""
        self.counts.copy_(counts)
        self._store(torch.arange(counts.numel(), device=counts.device), means.flatten(0, 1), 0)

    def resize_(self, slots: int) -> None:
        """Give each class S = `slots`, uniting those that do not fit."""
        resized = kernels.resize(self.state, slots)
        classes, _, features = self.means.shape
        self.options = dataclasses.replace(self.options, capacity=slots)
        self.counts = self.counts.new_zeros(classes, slots)
        self.means = self.means.new_zeros(classes, slots, features)
        self.ranges = self.ranges.new_zeros(classes, slots, self.ranges.shape[2])
        self.replace(resized.counts.squeeze(1), resized.keys.squeeze(1))

    def clear(self, classes: Tensor) -> None:
        """Empty the slots of classes given as bool `[C]`."""
        for statistic in (self.counts, self.means, self.ranges):
            statistic[classes] = 0

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any) -> None:
        """Load; float16 means of versions before they had an origin have it at zero."""
        name = f"{prefix}ranges"
        if name in state_dict and state_dict[name].shape == (*self.ranges.shape[:2], 0):
            state_dict = {**state_dict, name: torch.zeros_like(self.ranges)}
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def write(self, x: Tensor, y: Tensor, seen: Tensor, turn: int) -> None:
        """Write samples as one chunk.

        Args:
            x: `[L, F]` fp32.
            y: `[L]` int64.
            seen: `[C]` int64, samples of each class before.
            turn: a number that counts up from write to write: where rounding without bias stands.
        """
        touched, which = self._choose(x, y, seen).unique(return_inverse=True)
        counts = self.counts.view(-1)
        counts[touched] += torch.bincount(which, minlength=len(touched))
        old = self._load(touched)
        step = torch.zeros_like(old).index_add_(0, which, x - old[which])
        self._store(touched, old + step / counts[touched][:, None], turn)

    def _choose(self, x: Tensor, y: Tensor, seen: Tensor) -> Tensor:
        """Slot of each sample `[L]`: a new one, or the nearest of its class, the chunk's new ones included."""
        labels, which = y.unique(return_inverse=True)
        of_class = which[:, None] == torch.arange(len(labels), device=y.device)  # [L, K]
        size = (self.counts > 0).sum(1)
        after = seen[y] + _rank(of_class)  # samples of the class up to and including this one
        # Merging may have left more slots than the schedule asks for.
        seeds = target_size(after, self.options) > target_size(after - 1, self.options).maximum(size[y])
        slots = y * self.counts.shape[1] + size[y] + _rank(of_class & seeds[:, None]) - 1
        # Classes are looked at together, as many as fit into a cache.
        together = max(1, _TOGETHER // (self.means.shape[2] * int(size[labels].max() + len(y))))
        for some in torch.arange(len(labels), device=y.device).split(together):
            self._give_to_nearest(slots, x, labels[some], of_class[:, some], seeds, size[labels[some]])
        return slots

    def _give_to_nearest(
        self, slots: Tensor, x: Tensor, labels: Tensor, of_class: Tensor, seeds: Tensor, size: Tensor
    ) -> None:
        """Write into `slots [L]` where the samples of these classes `[K]` go that are no seeds.

        Args:
            slots: of the seeds; the rest is written.
            x: `[L, F]`.
            labels: `[K]`.
            of_class: bool `[L, K]`.
            seeds: bool `[L]`.
            size: `[K]` slots in use before.
        """
        members = of_class & ~seeds[:, None]
        sample, row = members.nonzero(as_tuple=True)
        if len(sample) == 0:
            return
        seed, seed_row = (of_class & seeds[:, None]).nonzero(as_tuple=True)
        first = labels * self.counts.shape[1]
        used = size + torch.bincount(seed_row, minlength=len(labels))
        column = torch.arange(int(used.max()), device=x.device)
        known = (first[:, None] + column).clamp(max=self.counts.numel() - 1)  # [K, S]
        mu = self._load(known.flatten()).view(*known.shape, -1)
        mu[seed_row, slots[seed] - first[seed_row]] = x[seed]
        place = _rank(members)[sample] - 1
        samples = members.sum(0)
        away = x.new_zeros(len(labels), int(samples.max()), x.shape[1])
        away[row, place] = x[sample]
        origin = away.sum(1) / samples[:, None].clamp(min=1)  # squares far from zero would drown the differences
        away[row, place] -= origin[row]
        filled = column < used[:, None]
        mu.sub_(origin[:, None]).mul_(filled[..., None])
        scale = torch.maximum(magnitude(away.flatten(1), rows=True), magnitude(mu.flatten(1), rows=True))[..., None]
        away, mu = away.div_(scale), mu.div_(scale)
        similarity = away @ mu.mT - (torch.linalg.vector_norm(mu, dim=2).square() / 2)[:, None]
        nearest = similarity.masked_fill(~filled[:, None], -torch.inf).argmax(2)
        slots[sample] = known[row, nearest[row, place]]

    def _load(self, slots: Tensor) -> Tensor:
        """Means `[n, F]` fp32 of slots `[n]`."""
        means = self.means.flatten(0, 1).index_select(0, slots).float()
        ranges = self.ranges.flatten(0, 1).index_select(0, slots)
        if self.means.dtype == torch.int8:
            low, step = ranges.split(1, 1)
            return means.sub_(_LOWEST).mul_(step).add_(low)
        return means.add_(ranges) if self.means.dtype == torch.float16 else means

    def _store(self, slots: Tensor, means: Tensor, turn: int) -> None:
        """Keep means `[n, F]` fp32 of slots `[n]`."""
        if self.means.dtype == torch.int8:
            low, high = means.aminmax(dim=1, keepdim=True)
            step = (high - low) / _LEVELS
            self.ranges.flatten(0, 1)[slots] = torch.cat([low, step], 1)
            # The mean of many samples moves by less than a step, and would stand still if it were rounded to the
            # nearest. What is added before rounding down runs evenly through [0, 1) over the turns, from another
            # start in every feature.
            feature = torch.arange(means.shape[1], dtype=torch.float64, device=means.device)
            dither = (feature * _PLASTIC + turn % 65536 * _GOLDEN).frac().float()
            levels = ((means - low) / step.clamp(min=torch.finfo(step.dtype).tiny) + dither).floor()
            means = levels.clamp(0, _LEVELS) + _LOWEST
        elif self.means.dtype == torch.float16:
            low, high = means.aminmax(dim=1, keepdim=True)
            origin = torch.zeros_like(low).clamp(low, high)  # the value nearest to zero, where zero is not among them
            self.ranges.flatten(0, 1)[slots] = origin
            means = means - origin
        self.means.flatten(0, 1)[slots] = means.to(self.means.dtype)


def _rank(members: Tensor) -> Tensor:
    """Return of each sample `[L]` how many of its column of bool `[L, K]` there are up to and including it."""
    return (members.cumsum(0) * members).sum(1)
