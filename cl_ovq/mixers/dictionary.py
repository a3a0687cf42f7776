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
from torch.nn import functional

from kernels import DictionaryOptions, DictionaryState, update

Tokens = tuple[Tensor, Tensor, Tensor]  # of a pass: keys `[B, T, H, Dk]`, values `[B, T, H, Dv]`, mask `[B, T]`


class PersistentDictionary(nn.Module):
    """The shared key and value dictionary of one layer.

    Its state lies in buffers, so it is part of `state_dict`, of checkpoints and of copies of the model, and moves with
    `.to()`.

    Args:
        heads: heads (H).
        key_dim: features of a key (Dk).
        value_dim: features of a value (Dv).
        options: the operator's options; `capacity` is the number of slots (N) per head.
        half_life: tokens after which all counts are halved (rounded up, so that no slot is lost); None for never. Old
            tokens then weigh less in the read-out, and a mean moves faster towards new ones. Growth goes on by the
            tokens written, whatever has become of their weight.
        sums: whether to keep the sums of keys and values that each task wrote into each slot, as much again as the
            dictionary for every task, so that a task can be forgotten (`operations.forget`).

    Raises:
        ValueError: `sums` with a half-life or a learning rate that is not adaptive, where means are not sums over
            counts.

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
    key_sums: Tensor
    value_sums: Tensor

    def __init__(
        self,
        *,
        heads: int,
        key_dim: int,
        value_dim: int,
        options: DictionaryOptions,
        half_life: int | None = None,
        sums: bool = False,
    ) -> None:
        super().__init__()
        if sums and (half_life is not None or options.learning_rate != "adaptive"):
            raise ValueError("sums by task need an adaptive learning rate and no half-life: means are sums over counts")
        self.options = options
        self.half_life = half_life
        self.sums = sums
        self.task = 0
        self._recording = self._recording_evaluation = False
        self._recorded: list[Tokens] = []
        self.last_written: tuple[Tensor, Tensor] | None = None
        empty = DictionaryState.empty(1, heads, options.capacity, key_dim, value_dim)
        for name, tensor in empty.state_dict().items():
            self.register_buffer(name, tensor)
        self._names = tuple(empty.state_dict())
        # The diary: who wrote what, and when. Metrics read it; the operator does not.
        self.register_buffer("writes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("written", torch.zeros(1, heads, options.capacity, dtype=torch.int64))
        self.register_buffer("last_write", torch.zeros(heads, options.capacity, dtype=torch.int64))
        self._diary: tuple[str, ...] = ("written",)  # buffers with a page per task
        if sums:
            self.register_buffer("key_sums", torch.zeros(1, heads, options.capacity, key_dim))
            self.register_buffer("value_sums", torch.zeros(1, heads, options.capacity, value_dim))
            self._diary += ("key_sums", "value_sums")

    @property
    def state(self) -> DictionaryState:
        """The dictionary as a state of batch size 1, to be read by all sequences of a batch."""
        return DictionaryState.from_state_dict({name: getattr(self, name) for name in self._names})

    @state.setter
    def state(self, state: DictionaryState) -> None:
        for name, tensor in state.state_dict().items():
            setattr(self, name, tensor)

    @contextmanager
    def recording(self, *, evaluation: bool = False) -> Iterator[None]:
        """Record the tokens of forward passes, for the next `write`.

        Args:
            evaluation: whether to record passes in evaluation mode too, for those who write them on purpose.
        """
        self._recording, self._recording_evaluation = True, evaluation
        try:
            yield
        finally:
            self._recording = self._recording_evaluation = False

    def observe(self, k: Tensor, v: Tensor, mask: Tensor | None, *, training: bool) -> None:
        """Take note of a forward pass's tokens, if it is recorded.

        Args:
            k: keys `[B, T, H, Dk]`.
            v: values `[B, T, H, Dv]`.
            mask: `[B, T]`, true for tokens.
            training: whether the pass is one of training.
        """
        if self._recording and (training or self._recording_evaluation):
            if mask is None:
                mask = torch.ones(k.shape[:2], dtype=torch.bool, device=k.device)
            self._recorded.append((k.detach(), v.detach(), mask))

    def take(self) -> list[Tokens]:
        """Return what was recorded, and forget it."""
        recorded, self._recorded = self._recorded, []
        return recorded

    @torch.no_grad()
    def write(self, tokens: list[Tokens] | None = None) -> None:
        """Write tokens, all of them in one update, also where a step accumulates gradients over passes.

        Args:
            tokens: of several passes; what was recorded if None.
        """
        recorded = self.take() if tokens is None else tokens
        if not recorded:
            return
        k, v, mask = (torch.cat([part.flatten(0, 1) for part in parts])[None] for parts in zip(*recorded, strict=True))
        state = self.state
        if self.half_life is not None:
            state = halve(state, mask.sum(), self.half_life)
        self.state, slots = update(state, k, v, self.options, mask)
        self.last_written = k[0], slots[0]
        self._note(slots[0].T, k[0], v[0])

    def begin_task(self, task: int) -> None:
        """Credit the writes to come to a task, counted from 0."""
        self.task = task
        missing = task + 1 - len(self.written)
        if missing > 0:
            for name in self._diary:
                pages = getattr(self, name)
                setattr(self, name, torch.cat((pages, pages.new_zeros(missing, *pages.shape[1:]))))

    def reset(self) -> None:
        """Empty the dictionary and its diary, and forget what was recorded; the number of writes goes on."""
        self._recorded = []
        self.state = self.state.reset()
        for name in (*self._diary, "last_write"):
            setattr(self, name, torch.zeros_like(getattr(self, name)))

    def _note(self, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Enter a write into the diary.

        Args:
            slots: of each token, `[H, m]`, -1 for those that were masked.
            k: keys `[m, H, Dk]`.
            v: values `[m, H, Dv]`.
        """
        self.writes = self.writes + 1
        valid = slots >= 0
        tokens = torch.zeros_like(self.last_write).scatter_add_(1, slots.clamp(min=0), valid.long())
        self.written = self.written.index_add(0, self.written.new_tensor([self.task]), tokens[None])
        self.last_write = torch.where(tokens > 0, self.writes, self.last_write)
        if self.sums:
            self.key_sums = self._add(self.key_sums, slots, functional.normalize(k.to(self.key_sums.dtype), dim=-1))
            self.value_sums = self._add(self.value_sums, slots, v.to(self.value_sums.dtype))

    def _add(self, sums: Tensor, slots: Tensor, x: Tensor) -> Tensor:
        """Add features `[m, H, D]` to the sums `[tasks, H, N, D]` of the present task at their slots `[H, m]`."""
        x = (x.transpose(0, 1) * (slots >= 0)[..., None]).contiguous()  # [H, m, D]
        index = slots.clamp(min=0)[..., None].expand_as(x)
        added = torch.zeros_like(sums[0]).scatter_add_(1, index, x)
        return sums.index_add(0, self.written.new_tensor([self.task]), added[None])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load a state; the diary has as many tasks as the one that was saved."""
        for name in self._diary:
            saved = state_dict.get(f"{prefix}{name}")
            if saved is not None:
                pages = getattr(self, name)
                setattr(self, name, pages.new_zeros(len(saved), *pages.shape[1:]))
        super()._load_from_state_dict(state_dict, prefix, *args)


def halve(state: DictionaryState, tokens: Tensor, half_life: int) -> DictionaryState:
    """Halve all counts once for every multiple of the half-life that the state's tokens pass, rounding up.

    Args:
        state: before a write.
        tokens: of that write, 0-dimensional.
        half_life: in tokens.
    """
    times = ((state.tokens + tokens) // half_life - state.tokens // half_life).clamp(max=62)[:, None, None]
    return state.replace(counts=(state.counts + (torch.ones_like(times) << times) - 1) >> times)


def dictionaries(model: nn.Module) -> dict[str, PersistentDictionary]:
    """Return the persistent dictionaries of a model by the name of their module."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PersistentDictionary)}
