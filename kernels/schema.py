"""What an operator of OVQ attention is given and what its gradient gives, stated once.

PyTorch's operators take and give flat lists of tensors, numbers and strings. `ARGUMENTS` declares the list,
`Arguments.pack` and `Arguments.unpack` go between it and the names. Letters: see `chunked`.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from kernels.options import DictionaryOptions, options_of
from kernels.state import DictionaryState

_STATE = tuple(field.name for field in fields(DictionaryState))


class Arguments(NamedTuple):
    """One call of `kernels.ovq_attention`, checked.

    Args:
        q: `[B, T, H, Dk]`.
        k: `[B, T, G, Dk]`.
        v: `[B, T, G, Dv]`.
        beta: `[H]`.
        slot_bias: `[H]`; None is zero.
        mask: `[B, T]` bool; None where all new tokens are valid.
        state: of B rows, or of one row that all share.
        options: of the dictionary.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    slot_bias: Tensor | None
    mask: Tensor | None
    state: DictionaryState
    options: DictionaryOptions

    def pack(self) -> tuple[Any, ...]:
        """As `ARGUMENTS` lists them: all tensors, then the options' text."""
        return (*self[:6], *self.state.state_dict().values(), self.options.text)

    @classmethod
    def unpack(cls, flat: Sequence[Any]) -> "Arguments":
        """What `pack` packed."""
        state = DictionaryState(**dict(zip(_STATE, flat[6:-1], strict=True)))
        return cls._make((*flat[:6], state, options_of(flat[-1])))


def _declared() -> dict[str, str]:
    """Name and type of every argument in PyTorch's words, in the order of `Arguments.pack`."""
    kinds = {Tensor: "Tensor", Tensor | None: "Tensor?", DictionaryOptions: "str"}
    found: dict[str, str] = {}
    for name, hint in get_type_hints(Arguments).items():
        found |= dict.fromkeys(_STATE, "Tensor") if hint is DictionaryState else {name: kinds[hint]}
    return found


ARGUMENTS = _declared()


class Gradients(NamedTuple):
    """Gradients of a call's arguments.

    Args:
        q: `[B, T, H, Dk]`.
        k: `[B, T, G, Dk]`.
        v: `[B, T, G, Dv]`.
        beta: `[B, H]`, to be summed over rows.
        slot_bias: `[B, H]`, likewise; of no row if there is none.
        pending_keys: `[B, p, G, Dk]`.
        pending_values: `[B, p, G, Dv]`.
        means: `[B, G, N, D]` of the initial dictionary; of one row where that is shared, of no row if nobody wants it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    slot_bias: Tensor
    pending_keys: Tensor
    pending_values: Tensor
    means: Tensor

    @classmethod
    def empty(cls, x: Arguments, full_chunks: int, wants_means: bool) -> "Gradients":
        """To be filled: those of q, k and v have any content, the others are zero."""
        (b, _, h, dk), (g, dv), state = x.q.shape, x.v.shape[2:], x.state
        rows = (b if full_chunks else state.batch) if wants_means else 0
        return cls(
            torch.empty_like(x.q, memory_format=torch.contiguous_format),
            torch.empty_like(x.k, memory_format=torch.contiguous_format),
            torch.empty_like(x.v, memory_format=torch.contiguous_format),
            state.keys.new_zeros(b, h),
            state.keys.new_zeros(0 if x.slot_bias is None else b, h),
            state.keys.new_zeros(b, state.pending, g, dk),
            state.keys.new_zeros(b, state.pending, g, dv),
            state.keys.new_zeros(rows, g, state.capacity, dk + dv),
        )
