"""How a call is cut into pieces of work: batch heads (one row and key/value head each) across, chunks along.

Batch heads do not depend on each other. A block of a few of them keeps its scores in the cache and gives a thread its
own work, which on a CPU is much faster than many threads inside each small matrix product.

Letters: `B` rows, `H` query heads, `G` key/value heads, `g = H / G` query heads that read one dictionary, `T` new
tokens, `p` pending ones before them, `L` chunk, `X, Y` the batch heads of a block (rows and key/value heads, in
either order), `m` tokens of a chunk, `s` of them with queries.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.numerics import inverse_norm
from kernels.reading import Scratch
from kernels.schema import Arguments

_SCORES = 1 << 20  # scores a block should hold at once on a CPU: 4 MiB in fp32


class Grid(NamedTuple):
    """Where chunks begin and end, in positions that count the pending tokens first."""

    pending: int
    new: int
    length: int

    def bounds(self, index: int) -> tuple[int, int]:
        """First and one past the last position of chunk `index`."""
        start = index * self.length
        return start, min(start + self.length, self.pending + self.new)

    def queries(self, index: int) -> slice:
        """The new tokens of chunk `index`, counted from the first new one."""
        start, stop = self.bounds(index)
        return slice(max(start - self.pending, 0), max(stop - self.pending, 0))

    @property
    def chunks(self) -> int:
        """Chunks that are begun."""
        return -(-(self.pending + self.new) // self.length)


class Call(NamedTuple):
    """What every block of one call shares.

    Args:
        x: its arguments, detached: beta and slot bias in the means' dtype; a mask; B rows of pending tokens; and B rows
            of the dictionary, or one that all share.
        grid: of its chunks.
        full_chunks: chunks that update the dictionary.
        all_valid: whether no token is masked.
    """

    x: Arguments
    grid: Grid
    full_chunks: int
    all_valid: bool


class Chunk(NamedTuple):
    """The tokens of one chunk of a block.

    Args:
        number: counted from the chunk of the first pending token.
        kv: `[X, Y, m, D]` normalised keys beside values; zero where masked.
        valid: bool, broadcasts against `[X, Y, m]`; None if all are.
        inverse: `[X, Y, s, 1]` inverse norms of the s new keys.
    """

    number: int
    kv: Tensor
    valid: Tensor | None
    inverse: Tensor


class Block(NamedTuple):
    """Some rows and key/value heads, each with `group` query heads.

    `shared` puts heads first: all rows of a head then read one dictionary.
    """

    rows: slice
    heads: slice
    group: int
    shared: bool

    def view(self, x: Tensor) -> Tensor:
        """`[B, T, G, ...]` as `[X, Y, T, ...]` of this block."""
        x = x[self.rows, :, self.heads]
        return x.movedim(2, 0) if self.shared else x.transpose(1, 2)

    def view_queries(self, x: Tensor) -> Tensor:
        """`[B, T, H, D]` as `[X, Y, T, g, D]`: a group's members side by side, so that tokens are rows in order."""
        return self.view(x.unflatten(2, (-1, self.group)))

    def row_view(self, x: Tensor) -> Tensor:
        """`[B, T]` so that it broadcasts against `[X, Y, T]`."""
        return x[self.rows][None] if self.shared else x[self.rows][:, None]

    def head_view(self, x: Tensor) -> Tensor:
        """`[H]` so that it broadcasts against `[X, Y, g, 1]`."""
        x = x.unflatten(0, (-1, self.group))[self.heads]
        return x[:, None, :, None] if self.shared else x[None, :, :, None]

    def view_batch_heads(self, x: Tensor) -> Tensor:
        """`[B, G, ...]` as `[X, Y, ...]`."""
        x = x[self.rows, self.heads]
        return x.transpose(0, 1) if self.shared else x

    def dictionaries(self, x: Tensor) -> Tensor:
        """`[B', G, ...]` of a dictionary as `[X, Y or 1, ...]`."""
        return x[:, self.heads].transpose(0, 1) if self.shared else x[self.rows, self.heads]


def blocks(batch: int, heads: int, group: int, scores: int, threads: int, shared: bool) -> list[Block]:
    """All batch heads of a call in blocks.

    Args:
        batch: B.
        heads: G.
        group: g.
        scores: logits that a batch head holds at a time.
        threads: that will share the blocks; zero for one block that keeps the device busy.
        shared: whether all rows read one dictionary.
    """
    most = batch * heads
    if threads:
        most = max(1, min(-(-batch * heads // threads), _SCORES // max(1, scores)))
    most = -(-batch * heads // -(-batch * heads // most))  # as many in every block
    if shared:  # rows of one head in one block
        many_rows, many_heads = min(batch, most), max(1, most // batch)
    else:
        many_rows, many_heads = max(1, most // heads), min(heads, most)
    return [
        Block(slice(b, min(b + many_rows, batch)), slice(h, min(h + many_heads, heads)), group, shared)
        for b in range(0, batch, many_rows)
        for h in range(0, heads, many_heads)
    ]


def load_tokens(call: Call, block: Block, index: int, out: Tensor) -> Chunk:
    """A chunk, whose keys and values `[X, Y, m, Dk + Dv]` are put into `out`."""
    x, grid = call.x, call.grid
    start, _ = grid.bounds(index)
    p, dk = grid.pending, x.k.shape[-1]
    old = max(p - start, 0)
    if old:
        out[:, :, :old, :dk] = block.view(x.state.pending_keys)[:, :, start:p]
        out[:, :, :old, dk:] = block.view(x.state.pending_values)[:, :, start:p]
    new = grid.queries(index)
    k = block.view(x.k)[:, :, new].to(out.dtype)
    inverse = inverse_norm(k)
    torch.mul(k, inverse, out=out[:, :, old:, :dk])
    out[:, :, old:, dk:] = block.view(x.v)[:, :, new]
    if call.all_valid or x.mask is None:
        return Chunk(index, out, None, inverse)
    valid = block.row_view(x.mask)[..., new]
    if old:
        valid = torch.cat([block.row_view(x.state.pending_mask)[..., start:], valid], -1)
    # What a masked position holds must not matter, not even if it is NaN.
    out.masked_fill_(~valid[..., None], 0.0)
    return Chunk(index, out, valid, inverse.masked_fill(~valid[..., old:, None], 0.0))


def load_queries(
    q: Tensor, valid: Tensor | None, dtype: torch.dtype, scratch: Scratch, *, norm: bool
) -> tuple[Tensor, Tensor | None]:
    """Queries `q [X, Y, s, g, Dk]`, contiguous, zero where not valid, and their inverse norms.

    Args:
        q: of any layout.
        valid: of the chunk, bool, broadcasts against `[X, Y, m]` with the queries last; None if all are.
        dtype: of what is returned.
        scratch: buffers.
        norm: whether to normalise them; None takes the place of the inverse norms if not.
    """
    q = q.to(dtype)
    if valid is not None:
        q = q.masked_fill(~valid[..., -q.shape[2] :, None, None], 0.0)
    out = scratch.take("queries", q, *q.shape)
    if not norm:
        return out.copy_(q), None
    inverse = inverse_norm(q)
    return torch.mul(q, inverse, out=out), inverse


def segments(count: int, length: int) -> Iterator[range]:
    """`range(count)` in ranges of `length`."""
    return (range(i, min(i + length, count)) for i in range(0, count, length))
