"""The read of one chunk: one softmax over slots and tokens, as matrix products, with its gradient.

Dictionaries may be shared: `R` rows of queries and tokens read each of `E` dictionaries (R = 1 when every row has its
own), so that the product with the slots is one for all of them. A group of `g` query heads that have one key/value head
are so many queries at each position, side by side.

Letters: `E` dictionaries, `R` rows of each, `s` queries (g at each position) and `m` tokens of a row's chunk, `n`
slots, `Dk`/`Dv` sizes.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.numerics import normalise

TILE = 128  # queries read at a time


class Sources(NamedTuple):
    """What the queries of a chunk see.

    Args:
        mu: `[E, n, Dk]` key means as the read-out uses them.
        nu: `[E, n, Dv]` value means.
        slot_bias: `[E, g or 1, n]` what is added to a slot's logit, by member of the group where they differ; minus
            infinity hides it.
        k: `[E R, m, Dk]` normalised keys.
        v: `[E R, m, Dv]`.
        token_bias: `[E R or 1, s, m]`, minus infinity where a query does not see a token.
    """

    mu: Tensor
    nu: Tensor
    slot_bias: Tensor
    k: Tensor
    v: Tensor
    token_bias: Tensor


class Scratch:
    """Buffers by name, kept from chunk to chunk: scores are larger than anything else and grow with the slots."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._made: dict[str, tuple[tuple[int, ...], Tensor]] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """An uninitialised tensor of this shape, with dtype and device of `like`."""
        size = torch.Size(shape).numel()
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = like.new_empty(size)
        return buffer[:size].view(shape)

    def once(self, name: str, key: tuple[int, ...], make: Callable[[], Tensor]) -> Tensor:
        """What `make` gave the last time with this key, or gives now: for what rarely differs from chunk to chunk."""
        if self._made.get(name, (None,))[0] != key:
            self._made[name] = (key, make())
        return self._made[name][1]


def slot_sources(
    keys: Tensor, counts: Tensor, beta: Tensor, added: Tensor | None, read_out: str
) -> tuple[Tensor, Tensor]:
    """Key means as the read-out uses them, and the bias of their logits.

    Args:
        keys: `[..., n, Dk]`.
        counts: `[..., n]` int64.
        beta: broadcasts against `[..., g, 1]`.
        added: to the logits of all slots, likewise; None adds nothing.
        read_out: a name in `READ_OUTS`.

    Returns:
        `[..., n, Dk]`; `[..., g, n]`, or `[..., 1, n]` where all members of a group have the same.
    """
    bias = counts.to(keys.dtype).log()[..., None, :]
    if added is not None:
        bias = bias + added
    if read_out == "unit":
        return normalise(keys), bias
    if read_out == "gmr":
        bias = bias - beta * half_square(keys)
    return keys, bias


def half_square(x: Tensor) -> Tensor:
    """`|x|^2 / 2` of vectors `[..., n, D]` as a row `[..., 1, n]`."""
    return (x.square().sum(-1) / 2)[..., None, :]


def visibility(queries: int, group: int, tokens: int, valid: Tensor | None, like: Tensor) -> Tensor:
    """Bias of the chunk's own tokens for its last `queries` positions: 0 where seen, minus infinity where not.

    Every query sees its own position even where that is masked, so that no softmax is empty; the output there is set
    to zero later.

    Args:
        queries: positions that ask.
        group: g, queries at each.
        tokens: m.
        valid: bool `[..., m]`, or None if all are.
        like: gives dtype and device.

    Returns:
        `[..., s, m]`, with one leading dimension of size one if `valid` is None.
    """
    seen = torch.ones(1, queries, tokens, dtype=torch.bool, device=like.device).tril(tokens - queries)
    if valid is not None:
        own = torch.ones_like(seen).tril(tokens - queries) & torch.ones_like(seen).triu(tokens - queries)
        seen = (seen & valid[..., None, :]) | own
    bias = like.new_zeros(()).where(seen, -torch.inf)
    return bias if group == 1 else bias.repeat_interleave(group, -2)


def attend(q: Tensor, x: Sources, scratch: Scratch) -> Tensor:
    """Softmax weights `[E, R s, n + m]` of queries `q [E, R s, Dk]`, which beta has scaled."""
    n, (batch_heads, m, _) = x.mu.shape[1], x.k.shape
    weights = scratch.take("weights", q, *q.shape[:2], n + m)
    own = weights.view(batch_heads, -1, n + m)[..., n:]
    of_slots, group = weights[..., :n], x.slot_bias.shape[1]
    if n and group == 1:
        torch.baddbmm(x.slot_bias, q, x.mu.mT, out=of_slots)
    elif n:
        of_slots.unflatten(1, (-1, group)).copy_(x.slot_bias[:, None])
        of_slots.baddbmm_(q, x.mu.mT)
    torch.baddbmm(x.token_bias.expand_as(own), q.view(batch_heads, -1, q.shape[-1]), x.k.mT, out=own)
    return torch.softmax(weights, -1, out=weights)


def combine(weights: Tensor, x: Sources, out: Tensor) -> None:
    """Outputs `[E, R s, Dv]` under these weights, into `out`."""
    n, batch_heads = x.mu.shape[1], x.k.shape[0]
    torch.bmm(weights[..., :n], x.nu, out=out)
    own = weights.view(batch_heads, -1, weights.shape[-1])[..., n:]
    out.view(batch_heads, -1, out.shape[-1]).baddbmm_(own, x.v)


def tiles(x: Sources, queries: int, group: int, cuts: Iterable[int] = ()) -> Iterator[tuple[slice, Sources]]:
    """The queries of a row's `queries` positions, `group` at each, in slices, with what each slice sees.

    The scores of a slice stay in a core's cache, and tokens later than its last are left out. Dictionaries that rows
    share are read in one: their chunks are short, and slices of every row would not lie together.

    Args:
        x: what the queries see; of one row per dictionary if there are `cuts`.
        queries: s / g.
        group: g.
        cuts: positions at which a slice must begin.
    """
    m, rows = x.k.shape[1], x.k.shape[0] // x.mu.shape[0]
    if not cuts and (rows > 1 or queries * group <= TILE):
        yield slice(0, rows * queries * group), x
        return
    step = max(1, TILE // group)
    for first, last in pairwise([*sorted({*range(0, queries, step), *cuts}), queries]):
        seen, tile = m - queries + last, slice(first * group, last * group)
        yield tile, x._replace(k=x.k[:, :seen], v=x.v[:, :seen], token_bias=x.token_bias[:, tile, :seen])


def causal_cuts(x: Sources, queries: int) -> list[int]:
    """Positions of the queries whose own token is not finite in some row: there a slice must begin (`tiles`).

    A later token's weight is zero, but zero times NaN is not: only a slice that leaves the token out is safe from it.
    """
    finite = x.k.isfinite().all(-1) & x.v.isfinite().all(-1)  # [E R, m]
    return (~finite[:, -queries:]).any(0).nonzero().flatten().tolist()


def own_dictionaries(x: Sources) -> Sources:
    """The same sources, with a copy of the dictionary for each row that shares it."""
    rows = x.k.shape[0] // x.mu.shape[0]
    if rows == 1:
        return x
    mu, nu, slot_bias = (t.repeat_interleave(rows, 0) for t in (x.mu, x.nu, x.slot_bias))
    return x._replace(mu=mu, nu=nu, slot_bias=slot_bias)


class SourceGradients(NamedTuple):
    """Gradients of `Sources`, to be added to.

    Args:
        mu: `[E, n, Dk]`; None if nobody wants it.
        nu: `[E, n, Dv]`; None if nobody wants it.
        k: `[E R, m, Dk]`.
        v: `[E R, m, Dv]`.
    """

    mu: Tensor | None
    nu: Tensor | None
    k: Tensor
    v: Tensor


def attend_backward(
    gradient: Tensor, q: Tensor, x: Sources, scratch: Scratch, d_q: Tensor, add: SourceGradients
) -> Tensor:
    """Gradient of `combine(attend(q, x), x)`; those of the sources are added to what is given.

    Args:
        gradient: `[E, R s, Dv]` of the outputs.
        q: `[E, R s, Dk]` scaled.
        x: what it reads.
        scratch: buffers.
        d_q: `[E, R s, Dk]`, filled with the gradient of q.
        add: gradients of the sources.

    Returns:
        Gradient `[E, R s, n + m]` of the logits, a buffer that the next read overwrites.
    """
    n, batch_heads = x.mu.shape[1], x.k.shape[0]
    weights = attend(q, x, scratch)
    d = scratch.take("gradients", q, *weights.shape)
    d_own, own = (t.view(batch_heads, -1, t.shape[-1])[..., n:] for t in (d, weights))
    gradient_rows, q_rows = (t.view(batch_heads, -1, t.shape[-1]) for t in (gradient, q))
    torch.bmm(gradient, x.nu.mT, out=d[..., :n])
    torch.bmm(gradient_rows, x.v.mT, out=d_own)
    if add.nu is not None:
        add.nu.baddbmm_(weights[..., :n].mT, gradient)
    add.v.baddbmm_(own.mT, gradient_rows)
    # Softmax: d = weights * (d - sum of weights * d)
    d.mul_(weights)
    d.addcmul_(weights, d.sum(-1, keepdim=True), value=-1)
    torch.bmm(d[..., :n], x.mu, out=d_q)
    d_q.view(batch_heads, -1, d_q.shape[-1]).baddbmm_(d_own, x.k)
    if add.mu is not None:
        add.mu.baddbmm_(d[..., :n].mT, q)
    add.k.baddbmm_(d_own.mT, q_rows)
    return d
