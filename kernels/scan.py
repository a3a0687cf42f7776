"""The scan along the chunks of a block of batch heads: read, then update.

Letters: see `batch_heads`; `N` capacity, `n` slots in use, `D = Dk + Dv`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import reading
from kernels.batch_heads import Block, Call, Chunk, load_queries, load_tokens
from kernels.options import DictionaryOptions
from kernels.reading import Scratch, Sources
from kernels.recycling import union_of, unite_
from kernels.selection import Assignment, Dictionary, choose_slots
from kernels.writing import flat_slots, update_weights, write_


def segment_length(options: DictionaryOptions) -> int:
    """Chunks between snapshots: their tokens are at least four times the slots."""
    return -(-4 * options.capacity // options.chunk_size)


class ScanResult(NamedTuple):
    """What a call gives and what its gradient needs, of all rows and heads; a block fills its part.

    Args:
        o: `[B, T, H, Dv]` outputs.
        means: `[B, G, N, D]` keys beside values after the last update.
        counts: `[B, G, N]` int64.
        size: `[B, G]` int64.
        slots: `[B, G, full_chunks L]` int32, the slot of each written token; -1 if masked, -2 - slot if it seeded the
            slot.
        united: `[B, G, full_chunks L]` int32, see `recycling.Room`; of no token where no slots unite.
        snapshots: `[segments - 1, B, G, N, D]` means at the start of every segment but the first.
    """

    o: Tensor
    means: Tensor
    counts: Tensor
    size: Tensor
    slots: Tensor
    united: Tensor
    snapshots: Tensor


class Seen(NamedTuple):
    """The slots in use of a block's dictionaries.

    Args:
        counts: `[X, Y or 1, n]` int64.
        keys: `[X, Y or 1, n, Dk]`.
        values: `[X, Y or 1, n, Dv]`.
    """

    counts: Tensor
    keys: Tensor
    values: Tensor


def in_use(used: int, counts: Tensor, keys: Tensor, values: Tensor) -> Seen:
    """The first `used` slots of counts `[X, Y or 1, N]`, keys `[X, Y or 1, N, Dk]` and values `[X, Y or 1, N, Dv]`.

    And a few empty ones, which a count of zero hides, so that rows of scores begin where vector instructions like them.
    """
    seen = min(-(-used // 16) * 16, counts.shape[-1])
    return Seen(counts[:, :, :seen], keys[:, :, :seen], values[:, :, :seen])


def encode(choice: Assignment) -> Tensor:
    """Slots and seeds in one integer each."""
    return torch.where(choice.seeds, -2 - choice.slots, choice.slots)


class Record(NamedTuple):
    """What updates did with each token, of a block's part of a `ScanResult`.

    Args:
        slots: `[X, Y, full_chunks L]` int32 as `encode` made them.
        united: `[X, Y, full_chunks L]` int32, or of no token where no slots unite.
    """

    slots: Tensor
    united: Tensor

    def choice(self, start: int, stop: int) -> Assignment:
        """What was done with the tokens of these positions."""
        code = self.slots[:, :, start:stop]
        seeds = code < -1
        united = self.united[:, :, start:stop].long() if self.united.shape[-1] else None
        return Assignment(torch.where(seeds, -2 - code, code).long(), seeds, united)


def sources(call: Call, block: Block, dictionary: Seen, chunk: Chunk, scratch: Scratch) -> Sources:
    """What the new positions of a chunk, its last, see of the dictionary and of the chunk."""
    kv, valid, new = chunk.kv, chunk.valid, call.grid.queries(chunk.number)
    queries = new.stop - new.start
    m, dk, group = kv.shape[2], call.x.q.shape[-1], block.group
    read_out = call.x.options.read_out
    beta = block.head_view(call.x.beta)
    added = None if call.x.slot_bias is None else block.head_view(call.x.slot_bias)
    mu, slot_bias = reading.slot_sources(dictionary.keys, dictionary.counts, beta, added, read_out)
    if valid is None:
        token_bias = scratch.once("visibility", (queries, m), lambda: reading.visibility(queries, group, m, None, kv))
    else:
        token_bias = reading.visibility(queries, group, m, valid, kv)
    if read_out == "gmr":
        of_tokens = (beta * reading.half_square(kv[..., :dk]))[:, :, None]
        token_bias = (token_bias.unflatten(-2, (queries, group)) - of_tokens).flatten(2, 3)
    if token_bias.dim() == 4:
        token_bias = token_bias.expand(*kv.shape[:2], queries * group, m).flatten(0, 1)
    tokens = kv.flatten(0, 1)
    nu = dictionary.values.flatten(0, 1)
    return Sources(mu.flatten(0, 1), nu, slot_bias.flatten(0, 1), tokens[..., :dk], tokens[..., dk:], token_bias)


def read_chunk(call: Call, block: Block, chunk: Chunk, x: Sources, scratch: Scratch, o: Tensor) -> None:
    """Write the outputs of a chunk into `o [B, T, H, Dv]`."""
    positions, valid = call.grid.queries(chunk.number), chunk.valid
    beta = block.head_view(call.x.beta)[:, :, None]
    norm = call.x.options.query_norm
    q, _ = load_queries(block.view_queries(call.x.q)[:, :, positions], valid, beta.dtype, scratch, norm=norm)
    q *= beta
    out = scratch.take("out", q, *q.shape[:4], o.shape[-1])

    def read(x: Sources, cuts: list[int]) -> None:
        flat_q, flat_out = (t.view(x.mu.shape[0], -1, t.shape[-1]) for t in (q, out))
        for tile, seen in reading.tiles(x, q.shape[2], block.group, cuts):
            reading.combine(reading.attend(flat_q[:, tile], seen, scratch), seen, flat_out[:, tile])

    read(x, [])
    # Whatever is not finite shows in the sum, and nearly never is there any: then the chunk is read anew.
    if not bool(out.sum().isfinite()) and (cuts := reading.causal_cuts(x, q.shape[2])):
        read(reading.own_dictionaries(x), cuts)
    if valid is not None:
        out.masked_fill_(~valid[..., -q.shape[2] :, None, None], 0.0)
    block.view_queries(o)[:, :, positions] = out


def read_only(call: Call, block: Block, result: ScanResult) -> None:
    """Outputs of a call that fills no chunk: one read, of dictionaries that may be shared by all rows."""
    scratch = Scratch()
    chunk, seen = open_chunk(call, block)
    read_chunk(call, block, chunk, sources(call, block, seen, chunk, scratch), scratch, result.o)


def open_chunk(call: Call, block: Block) -> tuple[Chunk, Seen]:
    """The only chunk, and the dictionary without a copy of it."""
    state = call.x.state
    x, y = block.view(call.x.k).shape[:2]
    _, m = call.grid.bounds(0)
    counts, keys, values, size = (block.dictionaries(t) for t in (state.counts, state.keys, state.values, state.size))
    kv = keys.new_empty(x, y, m, keys.shape[-1] + values.shape[-1])
    return load_tokens(call, block, 0, kv), in_use(int(size.max()), counts, keys, values)


def forward(call: Call, block: Block, result: ScanResult) -> None:
    """Scan a block's chunks; fill its part of `result`."""
    grid, options, state = call.grid, call.x.options, call.x.state
    scratch = Scratch()
    counts, keys, values, size = (
        block.view_batch_heads(t) for t in (state.counts, state.keys, state.values, state.size)
    )
    tokens = state.tokens[block.rows].clone()
    dk = keys.shape[-1]
    means = torch.cat([keys, values], -1)
    slots, united = block.view_batch_heads(result.slots), block.view_batch_heads(result.united)
    snapshots = result.snapshots[:, block.rows, block.heads]
    every = segment_length(options)
    buffer = means.new_empty(*size.shape, grid.length, means.shape[-1])
    origin = (block.rows.start, block.heads.start)
    for index in range(grid.chunks):
        start, stop = grid.bounds(index)
        if index and index % every == 0 and len(snapshots):
            snapshots[index // every - 1] = means
        used = int(size.max())
        chunk = load_tokens(call, block, index, buffer[:, :, : stop - start])
        queries = grid.queries(index)
        if queries.stop > queries.start:
            x = sources(call, block, in_use(used, counts, means[..., :dk], means[..., dk:]), chunk, scratch)
            read_chunk(call, block, chunk, x, scratch, result.o)
        if index < call.full_chunks:
            mask = None if chunk.valid is None else chunk.valid[:, 0]
            seen = means[:, :, :used]
            dictionary = Dictionary(seen[..., :dk], seen[..., dk:], counts[:, :, :used], size, tokens, origin)
            choice, size = choose_slots(chunk.kv[..., :dk], chunk.kv[..., dk:], mask, dictionary, options)
            union = union_of(choice.slots, choice.united, counts, means.dtype)
            if union is not None:
                unite_(means, union)
                counts = union.counts
            weights = update_weights(choice, counts, options, means.dtype)
            write_(means, chunk.kv, flat_slots(choice, means.shape[2]), weights.share)
            counts = weights.counts
            tokens += stop - start if mask is None else mask.sum(-1)
            if slots.shape[-1]:
                slots[:, :, start:stop] = encode(choice)
            if united.shape[-1]:
                united[:, :, start:stop] = -1 if choice.united is None else choice.united
    block.view_batch_heads(result.means).copy_(means)
    block.view_batch_heads(result.counts).copy_(counts)
    block.view_batch_heads(result.size).copy_(size)
