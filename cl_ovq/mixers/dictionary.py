"""A dictionary that outlives its sequences: one per layer and head, kept in module buffers.

Sequences read it; training steps write it; evaluation never does. Reading and writing are separate on purpose: a
strategy may run a batch through the model several times in one step (LwF, GEM, DER), and only the pass that is recorded
is written, once, when the step is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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

    Attributes:
        writes: number of writes, int64.
        written: tokens that each task wrote into each slot, `[tasks, H, N]` int64.
        last_write: number of the last write into each slot, counted from 1, `[H, N]` int64; 0 where there was none.
        task: the task that writes are credited to (`begin_task`).
        last_written: keys `[m, H, Dk]` of the last write, and the slot of each, `[m, H]`; -1 where masked.
    """

    writes: Tensor
    written: Tensor
    last_write: Tensor

    def __init__(self, *, heads: int, key_dim: int, value_dim: int, options: DictionaryOptions) -> None:
        super().__init__()
        self.options = options
        self.task = 0
        self._recording = False
        self._recorded: list[tuple[Tensor, Tensor, Tensor]] = []
        self.last_written: tuple[Tensor, Tensor] | None = None
        empty = DictionaryState.empty(1, heads, options.capacity, key_dim, value_dim)
        for name, tensor in empty.state_dict().items():
            self.register_buffer(name, tensor)
        self._names = tuple(empty.state_dict())
        # The diary: who wrote what, and when. Metrics read it; the operator does not.
        self.register_buffer("writes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("written", torch.zeros(1, heads, options.capacity, dtype=torch.int64))
        self.register_buffer("last_write", torch.zeros(heads, options.capacity, dtype=torch.int64))

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
        self.state, slots = update(self.state, k, v, self.options, mask)
        self.last_written = k[0], slots[0]
        self._note(slots[0].T)

    def begin_task(self, task: int) -> None:
        """Credit the writes to come to a task, counted from 0."""
        self.task = task
        missing = task + 1 - len(self.written)
        if missing > 0:
            self.written = torch.cat((self.written, self.written.new_zeros(missing, *self.written.shape[1:])))

    def reset(self) -> None:
        """Empty the dictionary and its diary, and forget what was recorded; the number of writes goes on."""
        self._recorded = []
        self.state = self.state.reset()
        self.written = torch.zeros_like(self.written)
        self.last_write = torch.zeros_like(self.last_write)

    def _note(self, slots: Tensor) -> None:
        """Enter a write into the diary: the slot of each token, `[H, m]`, -1 for those that were masked."""
        self.writes = self.writes + 1
        valid = slots >= 0
        tokens = torch.zeros_like(self.last_write).scatter_add_(1, slots.clamp(min=0), valid.long())
        self.written = self.written.index_add(0, self.written.new_tensor([self.task]), tokens[None])
        self.last_write = torch.where(tokens > 0, self.writes, self.last_write)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load a state; the diary has as many tasks as the one that was saved."""
        saved = state_dict.get(f"{prefix}written")
        if saved is not None:
            self.written = self.written.new_zeros(len(saved), *self.written.shape[1:])
        super()._load_from_state_dict(state_dict, prefix, *args)


def dictionaries(model: nn.Module) -> dict[str, PersistentDictionary]:
    """Return the persistent dictionaries of a model by the name of their module."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PersistentDictionary)}
