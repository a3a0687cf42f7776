"""The states of mixers as a list of tensors, and back: they are nested tuples of whatever a mixer keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kernels import DictionaryState


def tensors_of(state: Any) -> Iterator[Tensor]:
    """Yield the tensors of a state, in order; a number counts as one."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, int):
        yield torch.tensor(state)
    elif isinstance(state, DictionaryState):
        yield from state.state_dict().values()
    elif isinstance(state, tuple | list):
        for part in state:
            yield from tensors_of(part)
    elif state is not None:
        raise TypeError(
            f"a mixer's state contains a {type(state).__name__}; only tensors, numbers and tuples are allowed"
        )


def rebuilt(like: Any, tensors: Iterator[Tensor]) -> Any:
    """Return a state of the form of another one, made of tensors as `tensors_of` yields them."""
    if isinstance(like, Tensor):
        return next(tensors)
    if isinstance(like, int):
        return int(next(tensors))
    if isinstance(like, DictionaryState):
        return DictionaryState.from_state_dict({name: next(tensors) for name in like.state_dict()})
    if isinstance(like, tuple | list):
        parts = [rebuilt(part, tensors) for part in like]
        return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)
    return None


def mapped(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a state with every tensor changed."""
    return rebuilt(state, map(change, tensors_of(state)))


def repeated(state: Any, rows: int) -> Any:
    """Return the state of `B` sequences for `B rows`, so many of which go on from each; of one nothing is copied."""
    return mapped(state, lambda x: x[:, None].expand(-1, rows, *x.shape[1:]).flatten(0, 1) if x.dim() else x)


def dictionaries_of(state: Any) -> list[DictionaryState]:
    """Return the dictionaries in a state."""
    if isinstance(state, DictionaryState):
        return [state]
    return [found for part in state for found in dictionaries_of(part)] if isinstance(state, tuple | list) else []
