"""A dictionary that outlives its sequences: one per layer and head, kept in module buffers.

Sequences read it; training steps write it; evaluation never does. Reading and writing are separate on purpose: a
strategy may run a batch through the model several times in one step (LwF, GEM, DER), and only the pass that is recorded
is written, once, when the step is over.

Whoever holds a buffer (DDP, an average of models) sees every change: buffers are filled, never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.errors import UserError
from cl_ovq.mixers.base import is_recomputed, statistics
from cl_ovq.mixers.gathering import gather_rows, is_distributed
from kernels import DictionaryOptions, DictionaryState, write
from kernels.state import statistics_dtype

Tokens = tuple[Tensor, Tensor, Tensor]  # of a pass: keys `[B, T, H, Dk]`, values `[B, T, H, Dv]`, mask `[B, T]`


class PersistentDictionary(nn.Module):
    """The shared key and value dictionary of one layer.

    Its state lies in buffers, so it is part of `state_dict`, of checkpoints and of copies of the model, and moves with
    `.to()`. Means are fp32, or fp64 where the module is; `half()` and `bfloat16()` leave them fp32.

    Under `torch.distributed` every process writes the tokens of all, so dictionaries stay alike: then `write` must be
    called equally often by all processes of the default group.

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

    STATE = ("last_written",)  # of a checkpoint, beside `state_dict`
    keys: Tensor
    pending_keys: Tensor
    pending_values: Tensor
    pending_mask: Tensor
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
            raise ValueError(
                "sums by task require an adaptive learning rate and no half-life: means are sums divided by counts"
            )
        self.options = options
        self.half_life = half_life
        self.sums = sums
        self.task = 0
        self._recording = self._recording_evaluation = False
        self._awaits_write = False  # since tokens were asked for
        self._changed = False  # since the last pass
        self._recorded: list[Tokens] = []
        self.last_written: tuple[Tensor, Tensor] | None = None
        dtype = statistics_dtype(torch.get_default_dtype())
        empty = DictionaryState.empty((1, heads, options.capacity, key_dim, value_dim), dtype)
        for name, tensor in empty.state_dict().items():
            self.register_buffer(name, tensor)
        self._names = tuple(empty.state_dict())
        # The write log: who wrote what, and when. Metrics read it; the operator does not.
        self.register_buffer("writes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("written", torch.zeros(1, heads, options.capacity, dtype=torch.int64))
        self.register_buffer("last_write", torch.zeros(heads, options.capacity, dtype=torch.int64))
        self._write_log: tuple[str, ...] = ("written",)  # buffers with a page per task
        if sums:
            self.register_buffer("key_sums", torch.zeros(1, heads, options.capacity, key_dim, dtype=dtype))
            self.register_buffer("value_sums", torch.zeros(1, heads, options.capacity, value_dim, dtype=dtype))
            self._write_log += ("key_sums", "value_sums")

    @property
    def state(self) -> DictionaryState:
        """A copy of the dictionary, which later writes do not change: of batch size 1, for all sequences of a batch."""
        return DictionaryState.from_state_dict({name: getattr(self, name).clone() for name in self._names})

    @state.setter
    def state(self, state: DictionaryState) -> None:
        self._changed = True
        for name, tensor in state.state_dict().items():
            self.fill(name, tensor)

    @property
    def sum_bytes(self) -> int:
        """Bytes of the sums by task that `sums` keeps beside the state; the log of writes is for metrics alone."""
        return self.key_sums.nbytes + self.value_sums.nbytes if self.sums else 0

    @torch.no_grad()
    def fill(self, name: str, content: Tensor) -> None:
        """Give a buffer another content, of another shape too; it stays the same object."""
        buffer = getattr(self, name)
        if buffer.shape == content.shape:
            buffer.copy_(content)
        else:
            buffer.set_(content.to(buffer).clone(memory_format=torch.contiguous_format))

    @contextmanager
    def recording(self, *, evaluation: bool = False) -> Iterator[None]:
        """Record the tokens of forward passes, for the next `write`.

        Args:
            evaluation: whether to record passes in evaluation mode too, for those who write them on purpose.
        """
        before = self._recording, self._recording_evaluation
        self._recording, self._recording_evaluation, self._awaits_write = True, evaluation, True
        try:
            yield
        finally:
            self._recording, self._recording_evaluation = before

    def observe(self, k: Tensor, v: Tensor, mask: Tensor | None, *, training: bool) -> None:
        """Take note of a forward pass's tokens, if it is recorded.

        A pass made in the midst of a backward pass is an earlier one made again (activation checkpointing), and is not.

        Args:
            k: keys `[B, T, H, Dk]`.
            v: values `[B, T, H, Dv]`.
            mask: `[B, T]`, true for tokens.
            training: whether the pass is one of training.

        Raises:
            UserError: a pass is made again, but the dictionary was written since: its gradient would be another one.
        """
        if is_recomputed():
            if self._changed:
                raise UserError(
                    "a persistent dictionary was written before the backward pass, in which activation checkpointing "
                    "reads it again: call backward() within `writing(model)`, or before `dictionary.write()`"
                )
            return
        self._changed = False
        if self._recording and (training or self._recording_evaluation):
            if mask is None:
                mask = torch.ones(k.shape[:2], dtype=torch.bool, device=k.device)
            self._recorded.append((k.detach(), v.detach(), mask))

    def take(self) -> list[Tokens]:
        """Return what was recorded, and forget it."""
        recorded, self._recorded, self._awaits_write = self._recorded, [], False
        return recorded

    @torch.no_grad()
    def write(self, tokens: list[Tokens] | None = None) -> None:
        """Write tokens, all of them in one update, also where a step accumulates gradients over passes.

        Args:
            tokens: of several passes; what was recorded if None.

        Raises:
            UserError: nothing was recorded since the last write, nor any tokens given. Under `torch.distributed` a
                process may have had no pass to record.
        """
        if tokens is None:
            if not self._recorded and not (self._awaits_write and is_distributed()):
                raise UserError(
                    "dictionary.write() has nothing to write: make the pass inside `with dictionary.recording():`, in "
                    "training mode (or `recording(evaluation=True)`)"
                )
            tokens = self.take()
        k, v, mask = (x[None] for x in self._joined(tokens))
        if not mask.shape[1]:
            return
        state = self.state
        if self.half_life is not None:
            state = halve(state, mask.sum(), self.half_life)
        self.state, slots, united = write(state, k, v, self.options, mask)
        self.last_written = k[0], slots[0]
        self._unite(slots[0].T, united[0].T)
        self._note(slots[0].T, k[0], v[0])

    def _joined(self, tokens: list[Tokens]) -> Tokens:
        """Return the tokens of several passes, and of all processes, in one row: `[m, H, Dk]`, `[m, H, Dv]`, `[m]`."""
        nothing = (self.pending_keys, self.pending_values, self.pending_mask)  # of length zero
        passes = zip(*(tokens or [nothing]), strict=True)
        k, v, mask = (torch.cat([part.flatten(0, 1) for part in parts]) for parts in passes)
        if not is_distributed():
            return k, v, mask
        # In the type of the means, which holds every narrower one exactly: a process without tokens knows no other.
        columns = [x.flatten(1).to(self.keys.dtype) for x in (k, v, mask[:, None])]
        k, v, mask = gather_rows(torch.cat(columns, 1)).split([x.shape[1] for x in columns], 1)
        heads = (self.keys.shape[1], -1)
        return k.unflatten(1, heads), v.unflatten(1, heads), mask[:, 0] > 0

    def begin_task(self, task: int) -> None:
        """Credit the writes to come to a task, counted from 0."""
        self.task = task
        missing = task + 1 - len(self.written)
        if missing > 0:
            for name in self._write_log:
                pages = getattr(self, name)
                self.fill(name, torch.cat((pages, pages.new_zeros(missing, *pages.shape[1:]))))

    def reset(self) -> None:
        """Empty the dictionary and its write log, and forget what was recorded; the number of writes goes on."""
        self._recorded = []
        self.state = self.state.reset()
        for name in (*self._write_log, "last_write"):
            getattr(self, name).zero_()

    def _unite(self, slots: Tensor, united: Tensor) -> None:
        """Move what is known of slots `[H, m]` that became free to those that they united with; -1 for none."""
        head, token = (united >= 0).nonzero(as_tuple=True)
        freed, kept = slots[head, token], united[head, token]
        for name in self._write_log:
            pages = getattr(self, name)
            pages[:, head, kept] += pages[:, head, freed]
            pages[:, head, freed] = 0
        self.last_write[head, kept] = self.last_write[head, kept].maximum(self.last_write[head, freed])

    def _note(self, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Enter a write into the write log.

        Args:
            slots: of each token, `[H, m]`, -1 for those that were masked.
            k: keys `[m, H, Dk]`.
            v: values `[m, H, Dv]`.
        """
        self.writes += 1
        valid = slots >= 0
        tokens = torch.zeros_like(self.last_write).scatter_add_(1, slots.clamp(min=0), valid.long())
        self.written[self.task] += tokens
        self.last_write.copy_(torch.where(tokens > 0, self.writes, self.last_write))
        if self.sums:
            self._add(self.key_sums, slots, functional.normalize(k.to(self.key_sums.dtype), dim=-1))
            self._add(self.value_sums, slots, v.to(self.value_sums.dtype))

    def _add(self, sums: Tensor, slots: Tensor, x: Tensor) -> None:
        """Add features `[m, H, D]` to the sums `[tasks, H, N, D]` of the present task at their slots `[H, m]`."""
        x = (x.transpose(0, 1) * (slots >= 0)[..., None]).contiguous()  # [H, m, D]
        index = slots.clamp(min=0)[..., None].expand_as(x)
        sums[self.task] += torch.zeros_like(sums[0]).scatter_add_(1, index, x)

    def get_extra_state(self) -> Tensor:
        """Return the task that writes are credited to, which `state_dict` keeps beside the buffers: int64, a scalar."""
        return torch.tensor(self.task)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on with the task of a saved state."""
        self.task = int(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load a state; the write log has as many tasks as the one that was saved."""
        state_dict.setdefault(f"{prefix}_extra_state", torch.tensor(0))  # what was saved before there was one
        for name in self._write_log:
            saved = state_dict.get(f"{prefix}{name}")
            if saved is not None:
                pages = getattr(self, name)
                self.fill(name, pages.new_zeros(len(saved), *pages.shape[1:]))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PersistentDictionary:
        """Move or cast; counts stay integers, and means are never narrower than fp32."""
        return super()._apply(lambda tensor: statistics(tensor, fn), recurse)


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


@contextmanager
def writing(model: nn.Module) -> Iterator[None]:
    """Write a model's persistent dictionaries once, when the step inside is over, with all tokens that it trained on.

    Passes in evaluation mode are not written, and nothing is if the step fails.

        with writing(model):
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
    """
    held = dictionaries(model).values()
    try:
        with ExitStack() as stack:
            for dictionary in held:
                stack.enter_context(dictionary.recording())
            yield
    except BaseException:
        for dictionary in held:
            dictionary.take()
        raise
    for dictionary in held:
        dictionary.write(dictionary.take())
