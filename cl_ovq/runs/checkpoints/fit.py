"""Makes sure that a state fits the run that it is to be put into, before anything of it is put there.

A checksum says that nobody has damaged a file, not that it is right. What a run has in the place of each part, freshly
built, says what the part must be like: a tensor there wants a tensor of its type and shape, a number a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Any

import torch
from avalanche.training.storage_policy import ExemplarsBuffer, ReservoirSamplingBuffer
from torch import Tensor, nn

from cl_ovq.in_context.head import STATE, StateHead
from cl_ovq.mixers import dictionaries
from cl_ovq.runs.checkpoints.own_state import KINDS, is_foreign
from cl_ovq.training.replay import Memory

LARGEST = 2**63
LARGEST_RATE = 1e30  # of learning: what an optimizer makes of it must still be a number of 32 bits
GROWING = ("written", "key_sums", "value_sums")  # buffers of a dictionary with a page per experience


class Fit:
    """What the parts of a run's state must be like.

    Args:
        strategy: of the run, freshly built.
        training: whether each sample of its stream is one to train on, `[samples]`.
        experiences: of its stream.
    """

    def __init__(self, strategy: Any, training: Tensor, experiences: int) -> None:
        self.strategy = strategy
        self.training = training
        self.samples = len(training)
        self.experiences = experiences
        self.model: dict[str, Tensor] = strategy.model.state_dict()
        found = dictionaries(strategy.model)
        self.growing = {f"{name}.{part}" for name in found for part in GROWING}
        self.learners = {name: one for name, one in strategy.model.named_modules() if isinstance(one, StateHead)}

    def check(self, state: Mapping[str, Any]) -> None:
        """Check what every run has: model, dictionaries, optimizer.

        Raises:
            ValueError: saying what does not fit.
        """
        model = self.strategy.model
        plain = self._carried(state["model"])
        self._tensors(plain, "the model")
        _same(plain.keys(), self.model.keys(), "the model")
        parameters = dict(model.named_parameters())
        for name in parameters:
            _must(bool(state["model"][name].isfinite().all()), f"{name} of the model is not finite")
        _same(state["trained"].keys(), parameters.keys(), "trained")
        found = dictionaries(model)
        _same(state["dictionaries"].keys(), found.keys(), "dictionaries")
        for name, kept in state["dictionaries"].items():
            _whole(
                state["model"][f"{name}._extra_state"],
                0,
                len(state["model"][f"{name}.written"]),
                f"{name}'s experience",
            )
            if kept["last_written"] is not None:
                keys, slots = kept["last_written"]
                heads, capacity, width = found[name].keys.shape[-3:]
                _must(keys.shape == (len(slots), heads, width), f"the keys last written to {name} are of another shape")
                _must(slots.shape == (len(slots), heads), f"the slots last written to of {name} are of another shape")
                _whole(slots, -1, capacity, f"the slots last written to of {name}")
        self._optimizer(state["optimizer"])

    def _carried(self, found: Any) -> Any:
        """Check the states that learners in context carry, which a run that begins has none of; return the rest."""
        if not isinstance(found, dict):
            return found
        rest = dict(found)
        for name, head in self.learners.items():
            begin = f"{name}.{STATE}"
            numbers = [key.removeprefix(begin) for key in found if isinstance(key, str) and key.startswith(begin)]
            if not numbers:
                continue
            wanted = head.carried_like()
            _same(numbers, {str(number) for number in range(len(wanted))}, f"the state of {name}")
            for number, (dtype, shape) in enumerate(wanted):
                tensor = rest.pop(f"{begin}{number}")
                fits = isinstance(tensor, Tensor) and tensor.dtype == dtype and tensor.ndim == len(shape)
                fits = fits and all(size in (None, own) for size, own in zip(shape, tensor.shape, strict=True))
                _must(fits, f"the state of {name} has {_named(tensor)} in the place of {dtype} of {list(shape)}")
        return rest

    def _optimizer(self, kept: Mapping[str, Any]) -> None:
        optimizer = self.strategy.optimizer
        present = optimizer.state_dict()["param_groups"]
        _same(kept.keys(), {"state", "param_groups"}, "the optimizer")
        groups = kept["param_groups"]
        _must(isinstance(groups, list) and len(groups) == len(present), "the optimizer has other groups")
        for group, own in zip(groups, present, strict=True):
            _must(isinstance(group, dict), "the optimizer has a group that is none")
            _same(group.keys(), own.keys(), "the optimizer")
            _must(group["params"] == own["params"], "the optimizer has other parameters")
            for name, value in own.items():
                same = type(group[name]) is type(value) and group[name] == value
                # A schedule may have changed the learning rate; everything else is the configuration's.
                scheduled = name == "lr" and _alike(group[name], value) and 0 <= group[name] < LARGEST_RATE
                _must(same or scheduled, f"{name} of the optimizer is {group[name]!r}")
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        _must(isinstance(kept["state"], dict), "the optimizer has no state")
        expected = _state_of_a_step(optimizer)
        for number, parts in kept["state"].items():
            known = type(number) is int and 0 <= number < len(weights) and isinstance(parts, dict)
            _must(known, f"the optimizer has a state of parameter {number!r}")
            _same(parts.keys(), expected, f"the optimizer's state of parameter {number}")
            for name, part in parts.items():
                shapes = ((), weights[number].shape)
                fits = part is None or (isinstance(part, Tensor) and part.shape in shapes and part.is_floating_point())
                _must(fits and isinstance(name, str), f"{name} of the optimizer does not fit parameter {number}")
                counts = name != "step" or (part is not None and float(part.min()) >= 0 and bool(part.isfinite().all()))
                _must(counts, f"step of the optimizer is wrong for parameter {number}")

    def part(self, packed: Any, present: Any, place: str) -> None:
        """Check a part of the state of a strategy, plugin or recorder.

        Args:
            packed: as `RunState` packs it.
            present: what the run has in its place.
            place: for messages.

        Raises:
            ValueError: saying what does not fit.
        """
        if isinstance(present, Tensor):
            self._tensor(packed, present, place)
            if packed.dtype == torch.int64:  # rows in the stream, positions in a memory, task labels
                _whole(packed, 0, self.samples, place)
        elif isinstance(present, ExemplarsBuffer):
            self._policy(packed, present, place)
            _must(packed["policy"]["max_size"] == present.max_size, f"{place} has another size")
        elif isinstance(present, bool | int | float | str):
            _must(_alike(packed, present, finite=False), f"{place} is {packed!r}")
        elif isinstance(present, dict):
            self._mapping(packed, place)
        elif isinstance(present, list):
            whole = isinstance(packed, list) and all(isinstance(group, list) for group in packed)
            _must(
                whole and all(_alike(item, 0) for group in packed for item in group), f"{place} is not a list of lists"
            )
        elif present is None or isinstance(present, nn.Module):
            if packed is not None:
                self._tensors(_content(packed, "module", place), place)
        else:
            self._object(packed, present, place)

    def _object(self, packed: Any, present: Any, place: str) -> None:
        from cl_ovq.runs.checkpoints.state import state_of

        content = _content(packed, "object", place)
        _same(content.keys(), state_of(present), place)
        check = self._foreign if is_foreign(present) else self.part
        for name, item in content.items():
            check(item, getattr(present, name), f"{place}.{name}")
        if isinstance(present, Memory):
            rows = len(content["rows"])
            _must(len(content["tasks"]) == rows, f"{place} has samples without a task label")
            _whole(content["order"], 0, rows, f"{place}.order")
            own = torch.equal(content["rows"], _rows(content["storage_policy"]["policy"]))
            _must(own, f"{place} has other samples than its policy keeps")
        memory = getattr(present, "memory", None)
        if "logits" in content and isinstance(memory, Memory):
            rows = len(content["memory"]["object"]["rows"])
            _must(len(content["logits"]) == rows, f"{place} has logits of other samples")

    def _foreign(self, packed: Any, present: Any, place: str) -> None:
        """Check what a part that is not ours keeps: only it knows what plain data may stand there."""
        if isinstance(packed, dict) and len(packed) == 1 and next(iter(packed)) in KINDS:
            (kind,) = packed
            if kind == "module":
                self._tensors(_content(packed, kind, place), place, present)
            elif kind == "policy":
                _must(isinstance(present, ExemplarsBuffer), f"{place} is not a sample buffer any more")
                self.part(packed, present, place)
            elif kind == "object":
                self._object(packed, present, place)
        elif isinstance(packed, list | tuple | dict):
            for item in packed.values() if isinstance(packed, dict) else packed:
                self._foreign(item, None, place)

    def _tensor(self, packed: Any, present: Tensor, place: str) -> None:
        _must(isinstance(packed, Tensor), f"{place} is not a tensor")
        growing = present.ndim > 0 and len(present) == 0
        shapes = (packed.shape[1:], present.shape[1:]) if growing else (packed.shape, present.shape)
        fits = packed.dtype == present.dtype and packed.ndim == present.ndim and shapes[0] == shapes[1]
        _must(fits, f"{place} is {_named(packed)}, and should be like {_named(present)}")

    def _mapping(self, packed: Any, place: str) -> None:
        """Check tensors by the names of the model's, or of its dictionaries."""
        _must(isinstance(packed, dict), f"{place} is not a mapping")
        plain = {name: part for name, part in packed.items() if isinstance(part, Tensor)}
        self._tensors(plain, place)
        known = dictionaries(self.strategy.model)
        for name in packed.keys() - plain.keys():
            pair = packed[name]
            _must(name in known and isinstance(pair, tuple) and len(pair) == 2, f"{place} has no place for {name!r}")
            state = known[name].state
            for part, own in zip(pair, (state.counts[0], state.keys[0]), strict=True):
                self._tensor(part, own, f"{place}.{name}")

    def _tensors(self, tensors: Any, place: str, module: Any = None) -> None:
        """Check tensors by the names of a module's; of the model's if it is none."""
        known = module.state_dict() if isinstance(module, nn.Module) else self.model
        _must(isinstance(tensors, dict), f"{place} is not a mapping")
        for name, tensor in tensors.items():
            _must(name in known, f"{place}: the model has no '{name}'")
            own = known[name]
            shape = list(own.shape)
            if name in self.growing and isinstance(tensor, Tensor) and 0 < len(tensor) <= self.experiences:
                shape[0] = len(tensor)
            fits = isinstance(tensor, Tensor) and (list(tensor.shape), tensor.dtype) == (shape, own.dtype)
            _must(fits, f"{place}: {name} is {_named(tensor)}, and {_named(own)} in the model")

    def _policy(self, packed: Any, policy: ExemplarsBuffer, place: str) -> None:
        content = _content(packed, "policy", place)
        own = vars(policy)
        _same(content.keys(), own.keys(), place)
        for name, item in content.items():
            at = f"{place}.{name}"
            if name == "_buffer":
                _must(isinstance(item, Tensor) and item.ndim == 1, f"{at} is not a list of rows")
                _whole(item, 0, self.samples, at)
                _must(bool(self.training[item].all()), f"{at} holds samples that are not to be trained on")
            elif name == "_buffer_weights":
                _must(
                    isinstance(item, Tensor) and item.ndim == 1 and item.is_floating_point(),
                    f"{at} is not a vector",
                )
            elif name == "buffer_groups":
                _must(
                    isinstance(item, dict) and all(type(key) is int for key in item), f"{at} is not a mapping of groups"
                )
                for key, group in item.items():
                    self._policy(group, ReservoirSamplingBuffer(0), f"{at}.{key}")
                rooms = [group["policy"]["max_size"] for group in item.values()]
                _must(not rooms or sum(rooms) == content["max_size"], f"{at} do not share the room that there is")
            elif isinstance(own[name], set):
                seen = _content(item, "set", at, list)
                _must(all(type(label) is int for label in seen), f"{at} is not a set of labels")
                _must(set(seen) == content["buffer_groups"].keys(), f"{at} has other labels than groups")
            elif name == "_num_exps":
                groups = list(content["buffer_groups"])
                _must(
                    type(item) is int and groups == list(range(len(groups))) and item == len(groups),
                    f"{at} is {item!r}",
                )
            else:
                _must(_alike(item, own[name]), f"{at} is {item!r}")
        if "_buffer_weights" in content:
            _must(len(content["_buffer_weights"]) == len(content["_buffer"]), f"{place} has other weights than samples")
            _must(len(content["_buffer"]) <= content["max_size"], f"{place} has more samples than room")


def _rows(policy: dict[str, Any]) -> Tensor:
    """Return the rows of the samples that a packed policy keeps, once it is known to be right, `[n]` int64."""
    groups = policy.get("buffer_groups")
    if groups is None:
        kept: Tensor = policy["_buffer"]
        return kept
    return torch.cat([torch.empty(0, dtype=torch.int64), *(_rows(group["policy"]) for group in groups.values())])


def _content(packed: Any, kind: str, place: str, holds: type = dict) -> Any:
    whole = isinstance(packed, dict) and packed.keys() == {kind} and isinstance(packed[kind], holds)
    _must(whole, f"{place} is no {kind}")
    return packed[kind]


def _alike(value: Any, own: Any, *, finite: bool = True) -> bool:
    """Return whether a plain value is of the kind of another; where that is a float, any number is."""
    if isinstance(own, bool) or own is None or isinstance(own, str):
        return type(value) is type(own)
    if isinstance(own, tuple | list):
        return type(value) is type(own) and len(value) == len(own) and all(map(_alike, value, own))
    if isinstance(own, int):
        return type(value) is int and 0 <= value < LARGEST
    number = type(value) is float or (type(value) is int and abs(value) < LARGEST)
    return number and not math.isnan(value) and not (finite and math.isinf(value))


def _whole(tensor: Any, least: int, beyond: int, place: str) -> None:
    fits = isinstance(tensor, Tensor) and tensor.dtype == torch.int64
    _must(fits, f"{place} is {_named(tensor)}, and should be whole numbers")
    if tensor.numel():
        _must(least <= int(tensor.min()) and int(tensor.max()) < beyond, f"{place} holds numbers that are out of range")


def _state_of_a_step(optimizer: torch.optim.Optimizer) -> Set[str]:
    """Return what an optimizer keeps of a parameter once it has made a step."""
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    probe = type(optimizer)([optimizer.param_groups[0] | {"params": [weight]}])  # type: ignore[call-arg]
    probe.step()
    return probe.state[weight].keys()


def _same(found: Any, wanted: Any, place: str) -> None:
    missing, unknown = set(wanted) - set(found), set(found) - set(wanted)
    _must(not missing, f"{place}: {', '.join(map(str, missing))} is missing")
    _must(not unknown, f"{place}: {', '.join(map(str, unknown))} is not known")


def _named(value: Any) -> str:
    return f"{value.dtype} of {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _must(fits: bool, line: str) -> None:
    if not fits:
        raise ValueError(line)
