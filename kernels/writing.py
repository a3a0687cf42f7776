"""The statistics half of an update: once every token has its slot, the means move linearly in the tokens.

Letters: `B` rows, `H` heads, `N` slots, `m` tokens of the chunk, `D` key and value size together.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.native import library
from kernels.native.support import unserved as unserved_by_native
from kernels.numerics import normalise
from kernels.options import DictionaryOptions, check_name
from kernels.recycling import union_of, unite_
from kernels.registration import has_tangent
from kernels.selection import Assignment, Dictionary, choose_slots
from kernels.state import DictionaryState, Written
from kernels.triton.support import on_gpu
from kernels.triton.support import unserved as unserved_by_triton

UPDATES = ("auto", "chunked", "native", "triton")  # implementations


class Weights(NamedTuple):
    """How an update mixes old means and tokens: `mean = kept * mean + sum over the slot's tokens of share * token`.

    Args:
        counts: `[B, H, N]` int64 after the update.
        kept: `[B, H, N]` what is left of the mean before; a slot that is seeded keeps nothing.
        share: `[B, H, m]` weight of each token in its slot's mean; zero for a masked token.
    """

    counts: Tensor
    kept: Tensor
    share: Tensor


def learning_rate(assigned: Tensor, counts: Tensor, options: DictionaryOptions, dtype: torch.dtype) -> Tensor:
    """Step w of `mean += w (mean of the assigned tokens - mean)` for a tokens that arrive together.

    One token at a time, `constant` leaves (1 - rho)^a of the mean, so a tokens together take w = 1 - (1 - rho)^a:
    stable for every a, where rho times a would not be. `adaptive` takes a / c, the exact running mean.

    Args:
        assigned: a, int64 of any shape.
        counts: c with the assigned tokens in it, same shape.
        options: learning rate and rho.
        dtype: of the result.
    """
    adaptive = assigned.to(dtype) / counts.clamp(min=1).to(dtype)
    if options.learning_rate == "adaptive":
        return adaptive
    constant = 1 - (1 - options.rate) ** assigned.to(dtype)
    return constant if options.learning_rate == "constant" else torch.maximum(adaptive, constant)


def update_weights(choice: Assignment, counts: Tensor, options: DictionaryOptions, dtype: torch.dtype) -> Weights:
    """The weights of an update, and the counts after it.

    Args:
        choice: slots and seeds of the m tokens.
        counts: `[B, H, N]` before.
        options: learning rate.
        dtype: of the weights.
    """
    slots = choice.slots.clamp(min=0)
    valid = choice.slots >= 0
    total = counts.scatter_add(-1, slots, valid.long())
    if options.learning_rate == "adaptive":  # every token of a slot, its seed too, weighs 1 / c
        divisor = total.clamp(min=1).to(dtype)
        share = divisor.reciprocal().gather(-1, slots).masked_fill_(~valid, 0.0)
        return Weights(total, counts.to(dtype).div_(divisor), share)
    members = torch.zeros_like(counts).scatter_add_(-1, slots, (valid & ~choice.seeds).long())
    rate = learning_rate(members, total, options, dtype)
    per_member = (rate / members.clamp(min=1)).gather(-1, slots).masked_fill_(~valid, 0.0)
    share = torch.where(choice.seeds, 1 - rate.gather(-1, slots), per_member)
    return Weights(total, torch.where(counts > 0, 1 - rate, 0.0), share)


def flat_slots(choice: Assignment, slots: int) -> Tensor:
    """Row of each token's slot in means `[B H N, D]`, as `[B H m]`; a masked token names slot 0 of its row and head."""
    b, h, _ = choice.slots.shape
    offset = torch.arange(0, b * h * slots, slots, device=choice.slots.device).view(b, h, 1)
    return (choice.slots.clamp(min=0) + offset).view(-1)


def write_(means: Tensor, tokens: Tensor, index: Tensor, share: Tensor) -> None:
    """Bring contiguous means `[B, H, N, D]` in place to what they are after the chunk's `tokens [B, H, m, D]`.

    The change of each slot is summed, `share * (token - mean)`, not its new value: so a slot without tokens keeps its
    bits, and the mean of a slot with many is not rounded anew. A new slot's mean is zero before, and its shares sum to
    one.

    Args:
        means: zero in empty slots.
        tokens: zero where masked.
        index: from `flat_slots`.
        share: `[B, H, m]`, see `Weights`.
    """
    flat = means.view(-1, means.shape[-1])
    rows = tokens.reshape(-1, means.shape[-1])
    flat.index_add_(0, index, share.view(-1, 1) * (rows - flat.index_select(0, index)))


def update(
    state: DictionaryState,
    k: Tensor,
    v: Tensor,
    options: DictionaryOptions,
    mask: Tensor | None = None,
    implementation: str = "auto",
) -> tuple[DictionaryState, Tensor]:
    """Write tokens as one chunk; see `write`, whose state and slots it returns."""
    return write(state, k, v, options, mask, implementation)[:2]


def write(
    state: DictionaryState,
    k: Tensor,
    v: Tensor,
    options: DictionaryOptions,
    mask: Tensor | None = None,
    implementation: str = "auto",
) -> Written:
    """One update of a dictionary with all valid tokens given, whatever their number.

    A state of one row takes the tokens of every batch row, in row order, as one chunk: the write of a dictionary that
    a whole batch shares.

    Args:
        state: dictionaries without pending tokens; not modified.
        k: `[B, T, H, Dk]` keys, normalised here.
        v: `[B, T, H, Dv]` values.
        options: of the dictionary.
        mask: `[B, T]` bool, True for tokens to write; None writes all.
        implementation: `auto`, `chunked` (PyTorch), or `native` and `triton`, which pass no gradient on.

    Raises:
        ValueError: where shapes, options and state do not fit, or the state has an open chunk.
    """
    b, t, h, dk = k.shape
    dv = v.shape[-1]
    given = mask is not None
    if mask is None:
        mask = torch.ones(b, t, dtype=torch.bool, device=k.device)
    check_fits(state, options, h, dk, dv)
    if v.shape[:3] != k.shape[:3] or mask.shape != (b, t) or mask.dtype != torch.bool:
        raise ValueError(
            f"k {list(k.shape)}, v {list(v.shape)} and mask {list(mask.shape)} ({mask.dtype}) must be "
            "[B, T, H, Dk], [B, T, H, Dv] and bool [B, T]"
        )
    if state.pending:
        raise ValueError(f"the state has {state.pending} pending tokens of an open chunk: update needs a closed one")
    if state.batch == 1:
        k, v, mask = k.reshape(1, b * t, h, dk), v.reshape(1, b * t, h, dv), mask.reshape(1, b * t)
    elif state.batch != b:
        raise ValueError(f"the state has {state.batch} rows, the tokens {b}: they must be equal, or the state's 1")

    name = _choose(implementation, state, k, v, options)
    if name != "chunked":
        if name == "triton":
            from kernels.triton import writer
        else:
            from kernels.native import writer  # type: ignore[no-redef]

        new, slots = writer.update(state, k, v, options, mask if given else None)
        slots = slots.reshape(b, t, h)
        return Written(new, slots, torch.full_like(slots, -1))
    dtype = state.keys.dtype
    # What a masked position holds must not matter, not even if it is NaN.
    k, v = (x.to(dtype).masked_fill(~mask[..., None, None], 0.0).transpose(1, 2) for x in (k, v))
    k = normalise(k)
    used = int(state.size.max()) if state.size.numel() else 0
    keys, values = (x.clone(memory_format=torch.contiguous_format) for x in (state.keys, state.values))
    seen = slice(used)
    dictionary = Dictionary(
        state.keys[:, :, seen], state.values[:, :, seen], state.counts[:, :, seen], state.size, state.tokens
    )
    choice, size = choose_slots(k, v, None if bool(mask.all()) else mask, dictionary, options)
    counts, union = state.counts, union_of(choice.slots, choice.united, state.counts, dtype)
    if union is not None:
        unite_(keys, union)
        unite_(values, union)
        counts = union.counts
    weights = update_weights(choice, counts, options, dtype)
    index = flat_slots(choice, state.capacity)
    write_(keys, k, index, weights.share)
    write_(values, v, index, weights.share)
    tokens = state.tokens + mask.sum(-1)
    new = state.replace(counts=weights.counts, keys=keys, values=values, size=size, tokens=tokens)
    united = torch.full_like(choice.slots, -1) if choice.united is None else choice.united
    return Written(new, *(x.transpose(1, 2).reshape(b, t, h) for x in (choice.slots, united)))


def _choose(implementation: str, state: DictionaryState, k: Tensor, v: Tensor, options: DictionaryOptions) -> str:
    """The implementation that makes an update.

    `auto` takes Triton's kernels on a GPU and native code on a CPU, wherever they serve it and the latter is compiled.
    """
    check_name("implementation", implementation, UPDATES)
    if implementation == "chunked":
        return implementation
    name = implementation
    if implementation == "auto":
        name = "triton" if on_gpu(k) else "native"
        if name == "native" and (not library.is_loaded() or torch.compiler.is_compiling()):
            return "chunked"
    reason = (unserved_by_triton if name == "triton" else unserved_by_native)(k, k, v, options)
    if state.keys.dtype != torch.float32:
        reason = reason or f"the state's means are {state.keys.dtype}; served: float32"
    learned = (state.keys, state.values, k, v)
    if has_tangent(*learned) or (torch.is_grad_enabled() and any(x.requires_grad for x in learned)):
        reason = reason or "a gradient is wanted, which it does not pass on (torch.no_grad() says that none is)"
    if not k.shape[1] and name == "native":
        reason = reason or "there are no tokens"
    if reason and implementation == name:
        raise ValueError(f"implementation {name!r} cannot serve this update: {reason}; 'chunked' can")
    return "chunked" if reason else name


def check_fits(state: DictionaryState, options: DictionaryOptions, heads: int, key_dim: int, value_dim: int) -> None:
    """Raise a ValueError unless the state is one of these options and sizes."""
    state.check()
    if state.capacity != options.capacity:
        raise ValueError(
            f"the state has capacity {state.capacity}, the options {options.capacity}: "
            "resize the state or change the options"
        )
    found = (state.heads, state.keys.shape[-1], state.values.shape[-1])
    if found != (heads, key_dim, value_dim):
        raise ValueError(
            f"the state has (heads, key size, value size) {found}, the tokens {(heads, key_dim, value_dim)}"
        )
