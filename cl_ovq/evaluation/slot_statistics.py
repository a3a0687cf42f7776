"""Whose entries a dictionary holds, and how fresh and how true they are: counted once per experience."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor
from torch.nn import functional

from cl_ovq.mixers import PersistentDictionary, dictionaries

OWNED = 0.9
MEASURED = ("dead", "owned", "shared", "age", "drift", "quantization_error")


@dataclass(frozen=True)
class SlotStatistics:
    """The entries of one dictionary, or of all layers on average, at the end of an experience. Means over heads.

    Attributes:
        experience: experiences learned, from 1.
        dead: share of the slots in use that no token of this experience went to.
        owned: share of the slots in use that got at least nine tenths of their tokens from one experience.
        shared: the others.
        age: writes since the last token of a slot, mean over slots in use.
        drift: distance that the key mean of a slot moved in this experience, mean over slots in use at its start; None
            in the first.
        quantization_error: squared distance of a normalised key from the mean of its slot, mean over the last write.
        owners: slots in use by the experience that gave most of their tokens.
    """

    experience: int
    dead: float
    owned: float
    shared: float
    age: float
    drift: float | None
    quantization_error: float | None
    owners: list[float]


def count(dictionary: PersistentDictionary, experience: int, start: tuple[Tensor, Tensor] | None) -> SlotStatistics:
    """Take the statistics of a dictionary.

    Args:
        dictionary: after an experience, whose number counted from 0 is `dictionary.task`.
        experience: experiences learned.
        start: its counts `[H, N]` and key means `[H, N, Dk]` at the start of the experience; None if it was empty.
    """
    state, written = dictionary.state, dictionary.written.double()
    used = state.counts[0] > 0  # [H, N]
    slots = used.sum(-1).clamp(min=1).double()  # [H]

    def share(which: Tensor) -> float:
        return float(((which & used).sum(-1) / slots).mean())

    owner = written.argmax(0)
    owned = written.amax(0) >= OWNED * written.sum(0)
    age = ((dictionary.writes - dictionary.last_write) * used).sum(-1) / slots
    drift = None
    if start is not None:
        before, keys = start
        kept = before > 0
        moved = (state.keys[0] - keys).norm(dim=-1) * kept
        drift = float(moved.sum() / kept.sum().clamp(min=1))
    return SlotStatistics(
        experience=experience,
        dead=share(written[dictionary.task] == 0),
        owned=share(owned),
        shared=share(~owned),
        age=float(age.mean()),
        drift=drift,
        quantization_error=quantization_error(dictionary),
        owners=[float(((owner == task) & used).sum(-1).double().mean()) for task in range(len(written))],
    )


def quantization_error(dictionary: PersistentDictionary) -> float | None:
    """Return the mean squared distance of the last write's normalised keys from their slots' means; None before it."""
    if dictionary.last_written is None:
        return None
    keys, slots = dictionary.last_written  # [m, H, Dk], [m, H]
    heads = torch.arange(slots.shape[1], device=slots.device)
    means = dictionary.state.keys[0][heads, slots.clamp(min=0)]  # [m, H, Dk]
    distances = (functional.normalize(keys.to(means.dtype), dim=-1) - means).square().sum(-1)
    return float(distances[slots >= 0].mean())


class SlotStatisticsRecorder(PluginMetric[list[SlotStatistics]]):
    """Takes the statistics of persistent dictionaries after every experience, averaged over layers."""

    STATE = ("_start",)  # of a checkpoint
    HISTORY: ClassVar = {"records": SlotStatistics}  # of a checkpoint: what is only ever added to

    def __init__(self) -> None:
        super().__init__()
        self.records: list[SlotStatistics] = []
        self._start: dict[str, tuple[Tensor, Tensor]] = {}

    def before_training_exp(self, strategy: Any) -> None:
        """Remember where the entries are."""
        self._start = {
            name: (dictionary.state.counts[0], dictionary.state.keys[0])
            for name, dictionary in dictionaries(strategy.model).items()
            if dictionary.state.counts.any()
        }

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Take the statistics."""
        experience, step = strategy.experience.current_experience + 1, strategy.clock.train_iterations
        layers = {
            name.removesuffix(".dictionary"): count(dictionary, experience, self._start.get(name))
            for name, dictionary in dictionaries(strategy.model).items()
        }
        if not layers:
            return []
        record = average(list(layers.values()))
        self.records.append(record)
        told = {"dictionary": record}
        if len(layers) > 1:
            told |= {f"dictionary/{name}": layer for name, layer in layers.items()}
        return [
            MetricValue(self, f"{prefix}/{name}", getattr(layer, name), step)
            for prefix, layer in told.items()
            for name in MEASURED
            if getattr(layer, name) is not None
        ]

    def result(self) -> list[SlotStatistics]:
        """Return the statistics so far."""
        return self.records

    def reset(self) -> None:
        """Forget them."""
        self.records = []


def average(layers: list[SlotStatistics]) -> SlotStatistics:
    """Average the statistics of several layers at one moment."""
    mean: dict[str, Any] = {}
    for field in fields(SlotStatistics):
        values = [getattr(layer, field.name) for layer in layers]
        if field.name == "owners":
            mean["owners"] = [sum(slots) / len(slots) for slots in zip(*values, strict=True)]
        elif None in values:
            mean[field.name] = None
        else:
            mean[field.name] = sum(values) / len(values)
    return SlotStatistics(**mean | {"experience": layers[0].experience})
