"""The state of parts that are not ours: what a checkpoint can hold of it, and what is said where it cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from avalanche.training.storage_policy import ExemplarsBuffer
from torch import Tensor, nn

from cl_ovq.errors import UserError
from cl_ovq.runs.checkpoints.files import DTYPES
from cl_ovq.training.plugin import Plugin

KNOWN = ("cl_ovq", "avalanche")  # packages whose classes name what must be kept of them, or need nothing kept
KINDS = {"array", "set", "module", "policy", "object"}
KEPT = "numbers, text, tensors, arrays, models, lists and mappings of these, Avalanche's buffers, objects with a STATE"


def is_foreign(owner: Any) -> bool:
    """Return whether an object is of a class that is neither the platform's nor Avalanche's."""
    return type(owner).__module__.partition(".")[0] not in KNOWN


def check_owner(owner: Any) -> None:
    """Make sure that a plugin or strategy says what must be kept of it.

    Raises:
        UserError: it is neither ours nor Avalanche's and does not; the run could not go on as it was.
    """
    kind = type(owner)
    if not is_foreign(owner):
        return
    if "STATE" not in vars(kind):
        place = getattr(sys.modules.get(kind.__module__), "__file__", None) or kind.__module__
        raise UserError(
            f"checkpoint: '{kind.__qualname__}' ({place}) does not declare its state: inherit "
            'from cl_ovq.avalanche.Plugin, or set STATE = ("attribute", ...), STATE = () if nothing '
            "changes, or checkpoint.enabled=false"
        )
    if isinstance(kind.STATE, str):
        raise UserError(f"checkpoint: STATE of '{kind.__qualname__}' is a string: write STATE = ({kind.STATE!r},)")


def check_unchanged(plugin: Plugin, names: Iterable[str], options: Any) -> None:
    """Make sure that a plugin has the attributes that it was made with, and its options as they were.

    Raises:
        UserError: it has others; one that is made again to go on from a checkpoint would not have them.
    """
    kind = type(plugin).__qualname__
    if plugin.options != options:
        raise UserError(
            f"checkpoint: '{kind}' has changed its options, which must stay constant: copy what changes into an "
            "attribute in __init__"
        )
    if found := [name for name in plugin.state_names() if name not in names]:
        raise UserError(f"checkpoint: '{kind}' has a new attribute '{found[0]}': set it in __init__")
    if lost := [name for name in names if name not in plugin.state_names()]:
        raise UserError(f"checkpoint: '{kind}' has lost its attribute '{lost[0]}': set it to None instead")


def check_attributes(owner: Any, names: Iterable[str], model: nn.Module) -> None:
    """Make sure that the attributes named by the `STATE` of a foreign object can be kept as they are.

    Args:
        owner: the object.
        names: of its attributes.
        model: that is trained, whose own weights would come back as copies.

    Raises:
        UserError: one of them is not there, or is of a kind that a checkpoint cannot hold.
    """
    live = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers()) if tensor.numel()}
    for name in names:
        kind = type(owner).__qualname__
        where = (
            f"checkpoint: '{kind}' has an attribute '{name}'"
            if isinstance(owner, Plugin)
            else f"checkpoint: STATE of '{kind}' names '{name}'"
        )
        if not hasattr(owner, name):
            raise UserError(f"{where}, but it has no such attribute: set it in __init__")
        if (odd := _unkept(getattr(owner, name), live, inside=False)) is not None:
            raise UserError(f"{where}, which holds {odd}, which cannot be saved: supported are {KEPT}")


def _unkept(value: Any, live: set[int], *, inside: bool) -> str | None:
    """Return in words what of a value cannot be kept; None if all of it can.

    Args:
        value: of an attribute.
        live: where the tensors of the model itself lie.
        inside: whether it is an item of something else, in the place of which nothing stands when a run goes on.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return None
    if isinstance(value, Tensor) and value.untyped_storage().data_ptr() in live:
        return "a tensor of the model itself, which changes with it (.detach().clone() is a copy)"
    if isinstance(value, Tensor):
        return None if value.dtype in DTYPES.values() else f"a tensor of {value.dtype}"
    if kind in (list, tuple, set):
        return next(filter(None, (_unkept(item, live, inside=True) for item in value)), None)
    if kind is dict:
        if len(value) == 1 and next(iter(value)) in KINDS:
            return f"a mapping with nothing but '{next(iter(value))}'"
        return next(filter(None, (_unkept(item, live, inside=True) for pair in value.items() for item in pair)), None)
    if kind is np.ndarray:
        return None if str(value.dtype) in DTYPES else f"an array of {value.dtype}"
    if isinstance(value, nn.Module):
        return next(filter(None, (_unkept(tensor, live, inside=True) for tensor in value.parameters())), None)
    if isinstance(value, ExemplarsBuffer) and not inside:
        return None
    if not inside and any("STATE" in vars(base) for base in kind.__mro__):
        return None
    if isinstance(value, np.generic):
        return f"a NumPy {kind.__qualname__} (.item() is a number)"
    return f"a {kind.__qualname__}"
