"""The base of a method that is one plugin: its options, what a checkpoint keeps of it, and the bytes of that."""

from __future__ import annotations

from typing import Any

import numpy as np
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn


class Plugin(SupervisedPlugin):
    """An Avalanche plugin whose attributes are its state: all that `__init__` sets are kept in checkpoints.

    Options are not: they must stay as they were given.

    Args:
        options: of the strategy that it is entered as, in `options`.
    """

    options: Any = None

    def __init__(self, options: Any = None) -> None:
        super().__init__()
        self.options = options

    def state_names(self) -> tuple[str, ...]:
        """Return the names of the attributes that a checkpoint keeps."""
        return tuple(name for name in vars(self) if name != "options")

    @property
    def kept_bytes(self) -> int:
        """Bytes of the tensors, arrays and models that it holds."""
        return nbytes_of([getattr(self, name) for name in self.state_names()])


def nbytes_of(value: Any) -> int:
    """Return the bytes of the tensors, arrays and models in a value, and in lists and mappings of them."""
    if isinstance(value, Tensor | np.ndarray):
        return value.nbytes
    if isinstance(value, nn.Module):
        return nbytes_of({name: kept for name, kept in value.state_dict().items() if "_extra_state" not in name})
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(nbytes_of, value)) if isinstance(value, list | tuple | set) else 0
