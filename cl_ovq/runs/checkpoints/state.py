"""The state of a run as plain data and tensors: taken from a strategy, and put back into one that was built alike.

An object whose attributes must be kept names them in `STATE`. Attributes are plain data, tensors, or of the kinds that
`_pack` knows. Samples are kept as their rows in the stream, never as images.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training.storage_policy import ExemplarsBuffer, ReservoirSamplingBuffer
from avalanche.training.supervised import Cumulative
from pydantic import TypeAdapter
from torch import Tensor, nn

from cl_ovq.mixers import dictionaries
from cl_ovq.runs.checkpoints.fit import Fit
from cl_ovq.runs.checkpoints.own_state import KINDS, check_attributes, check_owner, check_unchanged, is_foreign
from cl_ovq.seeding import random_state, set_random_state
from cl_ovq.training.plugin import Plugin
from streams import Stream, rows_of

PLAN = "plan"  # the series of the history that holds the order of the batches of the epoch


class RunState:
    """Takes and puts back the state of a run.

    Args:
        strategy: the strategy, as built.
        stream: its stream, from which samples are found again by their rows.
        recorders: metrics, in an order that stays.
    """

    def __init__(self, strategy: Any, stream: Stream, recorders: tuple[Any, ...]) -> None:
        self.strategy = strategy
        self.recorders = recorders
        own = [plugin for plugin in strategy.plugins if isinstance(plugin, Plugin)]
        self._made = [(plugin, plugin.state_names(), copy.deepcopy(plugin.options)) for plugin in own]
        datasets = [experience.dataset for experience in stream.benchmark.streams["train"]]
        self._datasets = datasets
        self._everything: AvalancheDataset | None = None
        self._position = torch.full((len(stream.samples),), -1)
        rows = torch.cat([rows_of(dataset) for dataset in datasets])
        self._position[rows] = torch.arange(len(rows))

    def check_owners(self) -> None:
        """Make sure that everything whose state must be kept says what that is.

        Raises:
            UserError: something that is neither ours nor Avalanche's does not, or names what cannot be kept; the run
                could not go on as it was.
        """
        for owner in (self.strategy, *self.strategy.plugins, *self.recorders):
            if not isinstance(owner, Plugin):
                check_owner(owner)
            if is_foreign(owner):
                check_attributes(owner, state_of(owner), self.strategy.model)

    def begin(self, done: int) -> None:
        """Give a strategy that trains on all data so far the data of the experiences that are over."""
        if isinstance(self.strategy, Cumulative) and done:
            self.strategy.dataset = concat_datasets(self._datasets[:done])

    def take(self, *, within: bool) -> dict[str, Any]:
        """Return the state, but its history; tensors are those of the run and change with it, so write them at once.

        Args:
            within: whether it is taken within an epoch, some of whose batches may still be to come.

        Raises:
            UserError: a part that is not ours holds what cannot be kept.
        """
        strategy, model = self.strategy, self.strategy.model
        for plugin, names, options in self._made:
            check_unchanged(plugin, names, options)
        return {
            "model": dict(model.state_dict()),
            "trained": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
            "dictionaries": {name: self._attributes(found) for name, found in dictionaries(model).items()},
            "optimizer": strategy.optimizer.state_dict(),
            "clock": dict(vars(strategy.clock)),
            "strategy": self._pack(strategy),
            "plugins": [self._pack(plugin) for plugin in strategy.plugins],
            "recorders": [self._pack(recorder) for recorder in self.recorders],
            "plan": len(strategy.dataloader.plan) if within else 0,
            "random": random_state(),
        }

    def check(self, state: dict[str, Any]) -> None:
        """Make sure that a state fits this run, as it was built.

        Raises:
            ValueError: saying what does not.
        """
        strategy = self.strategy
        fit = Fit(strategy, self._position >= 0, len(self._datasets))
        fit.check(state)
        for kind, owners in (("strategy", [strategy]), ("plugins", strategy.plugins), ("recorders", self.recorders)):
            kept = [state[kind]] if kind == "strategy" else state[kind]
            if len(kept) != len(owners):
                raise ValueError(f"{kind}: {len(kept)} instead of {len(owners)}")
            for owner, packed in zip(owners, kept, strict=True):
                fit.part(packed, owner, type(owner).__name__)

    def put(self, state: dict[str, Any]) -> None:
        """Put a state back."""
        strategy, model = self.strategy, self.strategy.model
        model.load_state_dict(state["model"])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(state["trained"][name])
        for name, dictionary in dictionaries(model).items():
            for attribute, kept in state["dictionaries"][name].items():
                setattr(dictionary, attribute, self._unpack(kept, _DEVICE))
        strategy.optimizer.load_state_dict(state["optimizer"])
        vars(strategy.clock).update(state["clock"])
        owners = (strategy, *strategy.plugins, *self.recorders)
        packed = (state["strategy"], *state["plugins"], *state["recorders"])
        for owner, kept in zip(owners, packed, strict=True):
            self._unpack(kept, owner)
        set_random_state(state["random"])

    def series(self, *, within: bool) -> dict[str, list[Any]]:
        """Return the history of the run: rows by series, see `checkpoints.history.History`.

        Args:
            within: see `take`.
        """
        found = {name: getattr(recorder, attribute) for name, recorder, attribute, _ in self._histories()}
        return found | {PLAN: [self.strategy.dataloader.order] if within else []}

    def read_series(self, rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Return a history as the run has it.

        Args:
            rows: plain data by series.

        Raises:
            ValueError: a row is not of its kind.
        """
        series = {
            name: _typed(list[kind], rows.get(name, []))  # type: ignore[valid-type]
            for name, _, _, kind in self._histories()
        }
        orders = _typed(list[list[list[list[int]]]], rows.get(PLAN, []))
        return series | {PLAN: [[self._batch(*batch) for batch in order] for order in orders]}

    def put_series(self, series: Mapping[str, list[Any]]) -> None:
        """Put a history back, as `read_series` returns it.

        Raises:
            ValueError: its rows do not fit this run.
        """
        for name, recorder, attribute, _ in self._histories():
            setattr(recorder, attribute, series[name].copy())
        for recorder in self.recorders:
            if hasattr(recorder, "restored"):
                recorder.restored()

    def _batch(self, rows: list[int], tasks: list[int]) -> tuple[Tensor, Tensor]:
        """Return a batch of the plan: rows of the stream's samples, and task labels."""
        if len(rows) != len(tasks) or not all(0 <= row < len(self._position) for row in rows):
            raise ValueError("a batch has rows that are not in the stream")
        return torch.tensor(rows), torch.tensor(tasks)

    def _histories(self) -> Iterator[tuple[str, Any, str, type]]:
        """Yield series, recorder, attribute and kind of the rows of everything that is only ever added to."""
        for recorder in self.recorders:
            for attribute, kind in getattr(recorder, "HISTORY", {}).items():
                yield f"{type(recorder).__name__}.{attribute}", recorder, attribute, kind

    def _pack(self, value: Any) -> Any:
        """Return plain data and tensors; what is neither becomes a pair of its kind and its content."""
        if value is None or isinstance(value, bool | int | float | str | Tensor):
            return value
        if isinstance(value, list | tuple):
            return type(value)(self._pack(item) for item in value)
        if isinstance(value, dict):
            return {key: self._pack(item) for key, item in value.items()}
        if isinstance(value, np.ndarray):
            return {"array": torch.from_numpy(value)}
        if isinstance(value, set):
            return {"set": sorted(value, key=repr)}
        if isinstance(value, nn.Module):
            return {"module": dict(value.state_dict())}
        if isinstance(value, ExemplarsBuffer):
            kept = {name: self._pack(item) for name, item in vars(value).items() if name != "_buffer"}
            return {"policy": kept | {"_buffer": rows_of(value.buffer)}}
        return {"object": self._attributes(value)}

    def _attributes(self, owner: Any) -> dict[str, Any]:
        """Return what an object names in `STATE`, packed.

        Raises:
            UserError: a part that is not ours has come to hold what cannot be kept.
        """
        if is_foreign(owner):
            check_attributes(owner, state_of(owner), self.strategy.model)
        return {name: self._pack(getattr(owner, name)) for name in state_of(owner)}

    def _unpack(self, packed: Any, present: Any) -> Any:
        """Return what was packed; `present` is what is in its place now, and objects are changed in place."""
        if isinstance(packed, Tensor):
            return packed.clone().to(self.strategy.device if _on_device(present) else "cpu")
        if isinstance(packed, list | tuple):
            return type(packed)(self._unpack(item, present) for item in packed)
        if not isinstance(packed, dict):
            return packed
        kind = next(iter(packed), None)
        if len(packed) != 1 or kind not in KINDS:
            return {key: self._unpack(item, _DEVICE) for key, item in packed.items()}
        content = packed[kind]
        if kind == "object":
            for name, item in content.items():
                held = getattr(present, name)
                if is_foreign(present) and not isinstance(held, Tensor) and isinstance(item, Tensor | list | tuple):
                    held = _DEVICE  # nothing there says where its tensors belong
                setattr(present, name, self._unpack(item, held))
            return present
        if kind == "policy":
            return self._policy(content, present)
        if kind == "module" and isinstance(present, nn.Module):
            present.load_state_dict(content)
            return present
        return self._value(kind, content)

    def _value(self, kind: str, content: Any) -> Any:
        if kind == "array":
            return content.numpy().copy()
        if kind == "set":
            return set(content)
        module = copy.deepcopy(self.strategy.model).requires_grad_(False)
        module.load_state_dict(content)
        return module

    def _policy(self, content: dict[str, Any], policy: ExemplarsBuffer) -> ExemplarsBuffer:
        groups = content.get("buffer_groups")
        for name, item in content.items():
            if name == "buffer_groups":
                policy.buffer_groups = {
                    key: self._policy(group["policy"], ReservoirSamplingBuffer(0)) for key, group in item.items()
                }
            elif name == "_buffer":
                policy._buffer = self._dataset(item if groups is None else item[:0])
            else:
                setattr(policy, name, self._unpack(item, None))
        return policy

    def _dataset(self, rows: Tensor) -> AvalancheDataset:
        if len(rows) == 0:
            return concat_datasets([])
        if self._everything is None:
            self._everything = concat_datasets(self._datasets)
        return self._everything.subset(self._position[rows].tolist())


def _typed(kind: Any, rows: list[Any]) -> Any:
    """Return plain data as a type. Only for JSON does strictness let a mapping be a dataclass."""
    return TypeAdapter(kind).validate_json(json.dumps(rows), strict=True)


_DEVICE = object()


def _on_device(present: Any) -> bool:
    return present is _DEVICE or (isinstance(present, Tensor) and present.device.type != "cpu")


def state_of(owner: Any) -> tuple[str, ...]:
    """Return the names of the attributes that must be kept of an object, those of its base classes too."""
    if isinstance(owner, Plugin):
        return owner.state_names()
    names = [name for kind in type(owner).__mro__ for name in vars(kind).get("STATE", AVALANCHE.get(kind.__name__, ()))]
    return tuple(dict.fromkeys(names))


# Of Avalanche's own classes.
AVALANCHE = {"JointTraining": ("_is_fitted",)}
