"""A dictionary that outlives its sequences: one per layer and head, kept in module buffers.

Sequences read it; training steps write it; evaluation never does. Reading and writing are separate on purpose: a
strategy may run a batch through the model several times in one step (LwF, GEM, DER), and only the pass that is recorded
is written, once, when the step is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kernels import DictionaryOptions, DictionaryState, update


class PersistentDictionary(nn.Module):
    """The shared key and value dictionary of one layer.

    Its state lies in buffers, so it is part of `state_dict`, of checkpoints and of copies of the model, and moves with
    `.to()`.

    Args:
        heads: heads (H).
        key_dim: features of a key (Dk).
        value_dim: features of a value (Dv).
        options: the operator's options; `capacity` is the number of slots (N) per head.
    """

    def __init__(self, *, heads: int, key_dim: int, value_dim: int, options: DictionaryOptions) -> None:
        super().__init__()
        self.options = options
        self.writes = 0  # for tests and metrics: updates since this object was made
        self._recording = False
        self._recorded: list[tuple[Tensor, Tensor, Tensor]] = []
        empty = DictionaryState.empty(1, heads, options.capacity, key_dim, value_dim)
        for name, tensor in empty.state_dict().items():
            self.register_buffer(name, tensor)
        self._names = tuple(empty.state_dict())

    @property
    def state(self) -> DictionaryState:
        """The dictionary as a state of batch size 1, to be read by all sequences of a batch."""
        return DictionaryState.from_state_dict({name: getattr(self, name) for name in self._names})

    @state.setter
    def state(self, state: DictionaryState) -> None:
        for name, tensor in state.state_dict().items():
            setattr(self, name, tensor)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the tokens of forward passes in training mode, for the next `write`."""
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    def observe(self, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
        """Take note of a forward pass's tokens, if it is recorded.

        Args:
            k: keys `[B, T, H, Dk]`.
            v: values `[B, T, H, Dv]`.
            mask: `[B, T]`, true for tokens.
        """
        if self._recording:
            if mask is None:
                mask = torch.ones(k.shape[:2], dtype=torch.bool, device=k.device)
            self._recorded.append((k.detach(), v.detach(), mask))

    @torch.no_grad()
    def write(self) -> None:
        """Write what was recorded, all of it in one update, also where a step accumulates gradients over passes."""
        recorded, self._recorded = self._recorded, []
        if not recorded:
            return
        k, v, mask = (torch.cat([part.flatten(0, 1) for part in parts])[None] for parts in zip(*recorded, strict=True))
        self.state, _ = update(self.state, k, v, self.options, mask)
        self.writes += 1

    def reset(self) -> None:
        """Empty the dictionary and forget what was recorded."""
        self._recorded = []
        self.state = self.state.reset()


def dictionaries(model: nn.Module) -> dict[str, PersistentDictionary]:
    """Return the persistent dictionaries of a model by the name of their module."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PersistentDictionary)}
