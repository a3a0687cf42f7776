"""How the dictionaries of a model fill over training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor, nn

from cl_ovq.in_context.head import StateHead
from cl_ovq.mixers import OVQAttention, dictionaries
from cl_ovq.models.heads import unwrap
from cl_ovq.models.memory import MemoryHead
from cl_ovq.training.passes import step_ends
from kernels import DictionaryState

MEASURED = ("size", "effective_size", "tokens")


@dataclass(frozen=True)
class DictionaryRecord:
    """The dictionaries of one layer, or of all layers on average, at one moment of training.

    Attributes:
        step: training steps done.
        experience: experiences begun, from 1; 0 before training.
        tokens: tokens written so far.
        size: slots in use, mean over heads.
        effective_size: perplexity of the assignment, `exp(-sum p log p)` with `p` a slot's share of all tokens: the
            number of equally used slots that would carry as much information; mean over heads.
        growth_rate: slots per token since the record before; None where no token came in between.
    """

    step: int
    experience: int
    tokens: float
    size: float
    effective_size: float
    growth_rate: float | None = None


def effective_size(counts: Tensor) -> Tensor:
    """Return the perplexity of the assignment for counts `[..., N]`, over the last axis; 0 for an empty dictionary."""
    counts = counts.double()
    total = counts.sum(-1, keepdim=True)
    shares = counts / total.clamp_min(1)
    return torch.special.entr(shares).sum(-1).exp() * (total[..., 0] > 0)


def measure(state: DictionaryState, step: int, experience: int) -> DictionaryRecord:
    """Measure a dictionary, averaging over rows and heads."""
    return DictionaryRecord(
        step=step,
        experience=experience,
        tokens=float(state.tokens.double().mean()),
        size=float(state.size.double().mean()),
        effective_size=float(effective_size(state.counts).mean()),
    )


class DictionaryRecorder(PluginMetric[list[DictionaryRecord]]):
    """Records size and effective size of dictionaries that outlive sequences over training, averaged over layers.

    Besides every so many steps it records when an experience begins and when it ends, so that no tokens are missed
    where a dictionary is emptied in between.

    Args:
        every: training steps between two records.
    """

    STATE = ("experience",)  # of a checkpoint
    HISTORY: ClassVar = {"records": DictionaryRecord}  # of a checkpoint: what is only ever added to

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        self.every = every
        self.records: list[DictionaryRecord] = []
        self.experience = 0

    def before_training_exp(self, strategy: Any) -> None:
        """Count the experiences, and record what the new one begins with."""
        self.experience += 1
        self._record(strategy, strategy.clock.train_iterations)

    def after_training_iteration(self, strategy: Any) -> list[MetricValue]:
        """Record, if it is time to."""
        step = strategy.clock.train_iterations + 1  # Avalanche's clock ticks after the metrics
        return self._record(strategy, step) if step % self.every == 0 and step_ends(strategy) else []

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Record what the experience ends with, unless its last step was recorded."""
        step = strategy.clock.train_iterations
        return self._record(strategy, step) if step % self.every else []

    def _record(self, strategy: Any, step: int) -> list[MetricValue]:
        layers = shared_layers(strategy.model, step, self.experience)
        if not layers:
            return []
        record = average([layer.record for layer in layers.values()])
        if self.records and self.records[-1].tokens < record.tokens:
            grown, tokens = record.size - self.records[-1].size, record.tokens - self.records[-1].tokens
            record = replace(record, growth_rate=grown / tokens)
        self.records.append(record)
        values = [
            MetricValue(self, f"dictionary/{name}", getattr(record, name), step)
            for name in (*MEASURED, "growth_rate")
            if getattr(record, name) is not None
        ]
        if len(layers) > 1:
            values += [
                MetricValue(self, f"dictionary/{layer}/{name}", getattr(found.record, name), step)
                for layer, found in layers.items()
                for name in ("size", "effective_size")
            ]
        return values

    def result(self) -> list[DictionaryRecord]:
        """Return the records so far."""
        return self.records

    def reset(self) -> None:
        """Forget the records."""
        self.records = []


def average(records: list[DictionaryRecord]) -> DictionaryRecord:
    """Average the records of several layers at one moment."""
    mean = {name: sum(getattr(record, name) for record in records) / len(records) for name in MEASURED}
    return DictionaryRecord(step=records[0].step, experience=records[0].experience, **mean)


class Layer(NamedTuple):
    """One dictionary of a model, as it is now."""

    record: DictionaryRecord
    capacity: int
    bytes: int


def shared_layers(model: nn.Module, step: int, experience: int) -> dict[str, Layer]:
    """Return the dictionaries of a model that outlive sequences: of its layers, of a learner's state, or its memory.

    Args:
        model: any model.
        step: training steps done.
        experience: experiences begun.
    """
    found = {
        name.removesuffix(".dictionary"): _layer(dictionary.state, step, experience, dictionary.sum_bytes)
        for name, dictionary in dictionaries(model).items()
    }
    return found or carried(model, step, experience) or memories(model, step, experience)


def carried(model: nn.Module, step: int, experience: int) -> dict[str, Layer]:
    """Return the dictionaries in the states that learners in context carry on."""
    heads = {name: module for name, module in model.named_modules() if isinstance(module, StateHead)}
    return {
        f"{name}.{number}": _layer(state, step, experience)
        for name, head in heads.items()
        for number, state in enumerate(head.dictionaries)
    }


def memories(model: nn.Module, step: int, experience: int) -> dict[str, Layer]:
    """Return the memory heads of a model: slots of all classes together, and bytes with all that a memory keeps."""
    heads = {name: module for name, module in model.named_modules() if isinstance(module, MemoryHead)}
    return {
        name: Layer(
            DictionaryRecord(
                step=step,
                experience=experience,
                tokens=float(head.tokens),
                size=float(head.size),
                effective_size=float(effective_size(head.slots.counts.flatten())),
            ),
            head.capacity,
            head.nbytes,
        )
        for name, head in heads.items()
    }


def _layer(state: DictionaryState, step: int, experience: int, beside: int = 0) -> Layer:
    """Return a dictionary as it is now, with the bytes that it keeps beside its state."""
    return Layer(measure(state, step, experience), state.capacity, state.nbytes // state.batch + beside)


@torch.no_grad()
def summarize(model: nn.Module, inputs: Tensor, step: int, experience: int) -> dict[str, Any]:
    """Describe the dictionaries of a model at the end of a run.

    Args:
        model: the trained model, in evaluation mode.
        inputs: a few samples; dictionaries that live for one sequence are measured on them.
        step: training steps done.
        experience: experiences learned.

    Returns:
        `scope` (`sequence`, `shared` or `none`), `size`, `effective_size`, `tokens` and `capacity_used` averaged over
        layers, `bytes` of all layers (of one sequence where each has its own), and the same per layer under `layers`.
        A memory head is under `memory` too, if there is one beside the layers' dictionaries.
    """
    scope, layers = "shared", shared_layers(model, step, experience)
    owned = dictionaries(model) or carried(model, step, experience)
    if not owned and (states := _states_of_sequences(model, inputs)):
        scope, layers = "sequence", {name: _layer(state, step, experience) for name, state in states.items()}
    if not layers:
        return {"scope": "none", "size": 0.0, "effective_size": 0.0, "tokens": 0.0, "bytes": 0, "layers": {}}
    described = {name: _describe([layer]) for name, layer in layers.items()}
    beside = {name: layer for name, layer in memories(model, step, experience).items() if name not in layers}
    memory = {"memory": _describe(list(beside.values()))} if beside else {}
    return _describe(list(layers.values())) | {"scope": scope, "layers": described} | memory


def _describe(layers: list[Layer]) -> dict[str, Any]:
    record = average([layer.record for layer in layers])
    capacity = sum(layer.capacity for layer in layers) / len(layers)
    return asdict(record) | {
        "capacity": capacity,
        "capacity_used": record.size / capacity,
        "bytes": sum(layer.bytes for layer in layers),
    }


def _states_of_sequences(model: nn.Module, inputs: Tensor) -> dict[str, DictionaryState]:
    """Return the dictionary that each OVQ layer has learned by the end of each input's sequence."""
    seen: dict[str, Tensor] = {}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, OVQAttention)}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
        for name, layer in layers.items()
    ]
    try:
        unwrap(model)(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    states = {name: layer(seen[name], return_state=True)[1] for name, layer in layers.items()}
    return {name: state.dictionary for name, state in states.items() if state is not None}
