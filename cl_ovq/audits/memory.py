"""The check of the memory that a strategy claims: what it holds is found by walking its objects."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FrameType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from avalanche.benchmarks import CLExperience
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from cl_ovq.audits.findings import Finding, judged, not_applicable
from cl_ovq.audits.subject import RUNNING, Subject, Watched, digests
from cl_ovq.errors import is_foreign
from cl_ovq.mixers import PersistentDictionary
from cl_ovq.models.heads import RememberingHead
from cl_ovq.runs.result import carried_bytes
from streams import rows_of

if TYPE_CHECKING:
    from cl_ovq.runs.run import Run

# Objects of these packages hold nothing of a method, and lead everywhere.
ELSEWHERE = ("rich", "logging", "threading", "mlflow", "io", "_io", "avalanche.evaluation", "avalanche.logging")
LEAVES = (str, int, float, complex, type, ModuleType, BuiltinFunctionType, FrameType, torch.dtype, torch.device)
# What a strategy's loop leaves behind of its last step, which the next one replaces.
REGISTERED = ("_parameters", "_buffers", "_modules")  # of a module
OF_A_STEP = ("mbatch", "mb_output", "loss", "dataloader", "experience", "adapted_dataset")


def memory(subject: Subject) -> Finding:
    """The memory that a result claims (`memory_bytes`) is the memory that the strategy holds.

    Measured: after training every object that the strategy, its plugins, and the heads and dictionaries of its model
    lead to is walked (attributes, containers, closures), and the bytes of all tensors and arrays are added up, each
    storage once; samples that are held as rows of the stream count as images. The accounting of the platform is not
    asked. Not counted are weights, the optimizer, the stream itself, and what a read computes anew.

    What may be counted or not is a margin: places in the stream (one-dimensional whole numbers), a reservoir's keys,
    and tensors that are what the model was before it learned anything.
    """
    watched = subject.watched
    claimed, provenance = carried_bytes(watched.result), watched.result.provenance
    held = walk(watched)
    count = len(held.rows)
    measured = {
        "claimed_bytes": claimed,
        "held_bytes": held.content + count * watched.run.stream.samples.sample_bytes,
        "margin_bytes": held.margin,
        "claimed_samples": provenance["replay_samples"],
        "held_samples": count,
    }
    if subject.part.sees_all:
        return not_applicable("the strategy declares that it keeps all data so far", **measured)
    if claimed is None:
        return not_applicable("method_bytes is unknown: a plugin has no `kept_bytes`", **measured)
    low = held.content + count * watched.run.stream.samples.sample_bytes
    away = low - claimed if claimed < low else claimed - low - held.margin
    bad = f"{'held and not claimed' if claimed < low else 'claimed and not held'}: {away:,} bytes"
    largest = ", ".join(f"{name} {size:,}" for name, size in held.largest()) if claimed < low else ""
    good = "what is claimed is held, and nothing else is"
    return judged(away > 0, f"{bad} (held: {largest})" if largest else bad, good, **measured)


@dataclass
class Held:
    """What objects were found to hold.

    Attributes:
        content: bytes of tensors and arrays.
        margin: bytes of those that may be counted or not.
        rows: rows of the stream of which samples are held.
        places: bytes by what they were found in.
    """

    content: int = 0
    margin: int = 0
    rows: set[int] = field(default_factory=set)
    places: dict[str, int] = field(default_factory=dict)

    def add(self, place: str, size: int) -> None:
        """Count a tensor's bytes."""
        self.content += size
        self.places[place] = self.places.get(place, 0) + size

    def largest(self) -> list[tuple[str, int]]:
        """Return the three places that hold most."""
        return sorted(self.places.items(), key=lambda item: -item[1])[:3]


def walk(watched: Watched) -> Held:
    """Return what the strategy of a run that is over holds beside weights, optimizer and stream."""
    run = watched.run
    strategy: Any = run.strategy
    walker = _Walker(run, _initial(watched))
    own = vars(strategy).keys() - _of_every_strategy()
    for name, value in vars(strategy).items():
        if name in own:
            walker.enter(f"{type(strategy).__name__}.{name}", value)
    for plugin in strategy.plugins:
        walker.enter(type(plugin).__name__, vars(plugin))
    for name, module in strategy.model.named_modules():
        _enter_module(walker, name, module, watched)
    return walker.held


def _enter_module(walker: _Walker, name: str, module: nn.Module, watched: Watched) -> None:
    """Walk a module of the model: memories whole, and of others what is neither a weight nor a buffer.

    Of modules from outside, buffers that training changed are held too, but for running statistics.
    """
    kind = type(module).__name__
    if isinstance(module, RememberingHead):
        module.memory.drop_prepared()
        for part in module.memory.modules():
            walker.memories.add(id(part))
            walker.enter(type(module.memory).__name__, vars(part), exact=True)
    elif isinstance(module, PersistentDictionary):
        if watched.result.dictionary["scope"] == "sequence":
            return
        for key, tensor in module.named_buffers(recurse=False):
            log = key in ("writes", "written", "last_write")  # who wrote what, for metrics
            walker.tensor(kind, tensor, exact=True, margin=log)
    elif id(module) not in walker.memories and is_foreign(type(module)):
        walker.enter(kind, {key: value for key, value in vars(module).items() if key not in REGISTERED})
        for key, tensor in module.named_buffers(recurse=False):
            before = watched.initial.tensors.get(f"{name}.{key}".removeprefix("."))
            if key not in RUNNING and not (before is not None and torch.equal(before, tensor)):
                walker.tensor(kind, tensor, exact=True)


class _Walker:
    """Walks objects.

    Args:
        run: whose stream, model and optimizer are known, and not counted.
        initial: digests of the model's tensors before training.
    """

    def __init__(self, run: Run, initial: set[bytes]) -> None:
        strategy: Any = run.strategy
        self.held = Held()
        self.initial = initial
        self.memories: set[int] = set()
        stream = run.stream
        raw = getattr(stream, "raw", stream)
        known = [run, strategy, strategy.model, strategy.optimizer, strategy.evaluator, strategy.clock, run.tracker]
        known += [stream, raw, *stream.benchmark.streams.values(), stream.benchmark, stream.samples, raw.samples]
        known += [run.config, run.checkpoints, run.checkpoints.state, run.recorders, *run.recorders, run.callbacks]
        known += strategy.model.modules()
        self.known = {id(one) for one in known}
        self.alive = known  # so that no other object has one of their ids
        self.weights = {id(parameter) for parameter in strategy.model.parameters()}
        model = (*strategy.model.parameters(), *strategy.model.buffers())
        self.storages = {tensor.untyped_storage().data_ptr() for tensor in model}
        self.streams = {value.untyped_storage().data_ptr() for one in (stream, raw) for value in _tensors(one.samples)}
        self.seen: set[int] = set()
        self.counted: set[int] = set()

    def enter(self, place: str, value: Any, *, exact: bool = False) -> None:
        """Walk a value and all that it leads to.

        Args:
            place: that it was found in, for people.
            value: anything.
            exact: whether tensors count though they are the model's own.
        """
        stack = [value]
        while stack:
            one = stack.pop()
            if isinstance(one, Tensor | np.ndarray):
                if id(one) not in self.weights:
                    self.tensor(place, one, exact=exact)
                continue
            if id(one) in self.seen or id(one) in self.known or isinstance(one, LEAVES) or one is None:
                continue
            self.seen.add(id(one))
            self.alive.append(one)
            stack += self._inside(place, one)

    def _inside(self, place: str, one: Any) -> Iterable[Any]:
        """Return what an object leads to, and take in the samples that it stands for."""
        if isinstance(one, bytes | bytearray):
            self.held.add(place, len(one))
            return ()
        if isinstance(one, CLExperience):
            one = getattr(one, "dataset", None)
        if isinstance(one, AvalancheDataset):
            self.held.rows |= {*rows_of(one).tolist()}
            return ()
        if type(one) is ReservoirSamplingBuffer:
            self.tensor(place, one._buffer_weights, margin=True)
        if isinstance(one, FunctionType):
            return [*(one.__defaults__ or ()), *(cell.cell_contents for cell in one.__closure__ or () if _full(cell))]
        if isinstance(one, MethodType):
            return (one.__self__, one.__func__)
        if type(one).__module__.startswith(ELSEWHERE) or inspect.isgenerator(one):
            return ()
        return gc.get_referents(one)

    def tensor(self, place: str, one: Tensor | np.ndarray, *, exact: bool = False, margin: bool = False) -> None:
        """Count a tensor or array, its storage once.

        Args:
            place: that it was found in.
            one: tensor or array.
            exact: whether it counts though it is the model's own.
            margin: whether it may be counted or not.
        """
        if isinstance(one, np.ndarray):
            address, size, floating = one.__array_interface__["data"][0], one.nbytes, one.dtype.kind == "f"
        else:
            storage = one.untyped_storage()
            address, size, floating = storage.data_ptr(), storage.nbytes(), one.is_floating_point()
        if address in self.counted or address in self.streams or (address in self.storages and not exact):
            return
        self.counted.add(address)
        places = one.ndim < 2 and not floating
        if margin or places or (isinstance(one, Tensor) and _digest(one.detach()) in self.initial):
            self.held.margin += size
        else:
            self.held.add(place, size)


def _initial(watched: Watched) -> set[bytes]:
    return {_digest(tensor) for tensor in watched.initial.tensors.values()}


def _digest(tensor: Tensor) -> bytes:
    return digests(tensor.reshape(1, -1).view(torch.uint8) if tensor.numel() else tensor.new_zeros(1, 0))[0]


def _tensors(samples: Any) -> list[Tensor]:
    return [value for value in vars(samples).values() if isinstance(value, Tensor)]


def _full(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _of_every_strategy() -> set[str]:
    """Return the attributes that Avalanche gives every strategy, which hold its model, data and last step."""
    weight = nn.Linear(1, 1)
    bare = SupervisedTemplate(
        model=weight, optimizer=torch.optim.SGD(weight.parameters(), lr=0.1), criterion=nn.MSELoss(), evaluator=None
    )
    return {*vars(bare), *OF_A_STEP}
