"""Operations on whole persistent dictionaries: forget a task, merge what parallel workers learned, change the capacity.

Each changes its dictionary in place, write log included, and keeps the slots in use at the front.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

import kernels
from cl_ovq.mixers.dictionary import PersistentDictionary
from cl_ovq.mixers.ovq import OVQAttention
from kernels import DictionaryState


@torch.no_grad()
def forget(dictionary: PersistentDictionary, task: int) -> None:
    """Remove all that a task wrote: its counts and its part of every mean. Slots that only it used are emptied.

    What remains is what would have been there if the other tasks' tokens had gone to the slots that they went to. The
    schedule of growth goes on from the tokens that are left.

    Args:
        dictionary: one that keeps sums by task (`sums`).
        task: counted from 0.

    Raises:
        ValueError: it keeps no sums, or has seen no such task.
    """
    if not dictionary.sums:
        raise ValueError("only a dictionary that keeps sums by task can forget a task: set sums=True (dictionary.sums)")
    if not 0 <= task < len(dictionary.written):
        raise ValueError(f"task must be in 0 .. {len(dictionary.written) - 1}, got {task}")
    for name in ("written", "key_sums", "value_sums"):
        getattr(dictionary, name)[task] = 0
    state = dictionary.state
    counts = dictionary.written.sum(0)  # [H, N]
    over = counts.clamp(min=1)[..., None]
    dictionary.state = state.replace(
        counts=counts[None],
        keys=(dictionary.key_sums.sum(0) / over)[None].to(state.keys.dtype),
        values=(dictionary.value_sums.sum(0) / over)[None].to(state.values.dtype),
        size=(counts > 0).sum(-1)[None],
        tokens=counts[0].sum()[None],
    )
    dictionary.last_write *= counts > 0
    _reorder(dictionary, torch.argsort((counts == 0).byte(), dim=-1, stable=True))


@torch.no_grad()
def merge(dictionary: PersistentDictionary, other: PersistentDictionary) -> None:
    """Take in what another dictionary of the same layer learned; slots that do not fit unite by Ward's rule.

    The write logs add up task by task. Where slots unite, what each task wrote is added, and their last write is the
    mean.

    Args:
        dictionary: takes in.
        other: of the same layer, which has seen other tokens through the same encoder.

    Raises:
        ValueError: heads or sizes differ.
    """
    tasks = max(len(dictionary.written), len(other.written))
    merged = kernels.merge(_pack(dictionary, tasks), _pack(other, tasks), dictionary.options.capacity)
    dictionary.writes += other.writes
    _unpack(dictionary, merged, tasks)


@torch.no_grad()
def resize(model: nn.Module, capacity: int) -> None:
    """Give every OVQ layer of a model another number of slots, uniting those of its dictionary that do not fit.

    Args:
        model: any model.
        capacity: slots per head (N).

    Raises:
        ValueError: the capacity is not positive.
    """
    for layer in model.modules():
        if not isinstance(layer, OVQAttention):
            continue
        layer.options = dataclasses.replace(layer.options, capacity=capacity)
        if layer.dictionary is not None:
            tasks = len(layer.dictionary.written)
            packed = kernels.resize(_pack(layer.dictionary, tasks), capacity)
            layer.dictionary.options = layer.options
            _unpack(layer.dictionary, packed, tasks)


def _pages(dictionary: PersistentDictionary) -> list[str]:
    return [*(("key_sums", "value_sums") if dictionary.sums else ()), "written"]


def _pack(dictionary: PersistentDictionary, tasks: int) -> DictionaryState:
    """Return the state with the log, per token, beside the values: uniting slots conserves what a value sums to."""
    state = dictionary.state
    counts = state.counts[0].clamp(min=1).double()[..., None]  # [H, N, 1]
    columns = [state.values[0].double(), dictionary.last_write[..., None].double()]
    for name in _pages(dictionary):
        pages = getattr(dictionary, name).double()
        pages = torch.cat((pages, pages.new_zeros(tasks - len(pages), *pages.shape[1:])))
        pages = pages if pages.dim() == 4 else pages[..., None]  # [tasks, H, N, D]
        columns.append(pages.movedim(0, 2).flatten(2) / counts)
    return state.replace(keys=state.keys.double(), values=torch.cat(columns, -1)[None])


def _unpack(dictionary: PersistentDictionary, packed: DictionaryState, tasks: int) -> None:
    """Put a packed state in the place of the dictionary's own."""
    old = dictionary.state
    key_dim, value_dim = old.keys.shape[-1], old.values.shape[-1]
    counts = packed.counts[0].double()[..., None]
    values = packed.values[0]
    dictionary.state = packed.replace(
        keys=packed.keys.to(old.keys.dtype), values=values[None, ..., :value_dim].to(old.values.dtype)
    )
    dictionary.fill("last_write", values[..., value_dim].round().long())
    start = value_dim + 1
    for name, dim in zip(_pages(dictionary), (key_dim, value_dim, 1) if dictionary.sums else (1,), strict=True):
        width = tasks * dim
        pages = (values[..., start : start + width] * counts).unflatten(-1, (tasks, dim)).movedim(2, 0)
        start += width
        if name == "written":
            pages = pages[..., 0].round()
        dictionary.fill(name, pages)


def _reorder(dictionary: PersistentDictionary, order: Tensor) -> None:
    """Put the slots of each head into another order `[H, N]`."""
    state = dictionary.state

    def along(x: Tensor, *, means: bool) -> Tensor:  # [..., H, N], or means [..., H, N, D]
        return x.gather(-2 if means else -1, (order[..., None] if means else order).expand(x.shape))

    dictionary.state = state.replace(
        counts=along(state.counts, means=False),
        keys=along(state.keys, means=True),
        values=along(state.values, means=True),
    )
    for name in ("last_write", *_pages(dictionary)):
        dictionary.fill(name, along(getattr(dictionary, name), means=name.endswith("sums")))
