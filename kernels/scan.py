"""The walk along the chunks of a block of lines, forward and backward: read, then update.

Going back needs every dictionary of the way. The tokens' slots are kept (one integer each), so dictionaries can be
made again without any similarity: from snapshots a fixed number of chunks apart, a segment at a time. Within the
segment each update leaves the rows that it overwrote, and the walk back puts them back bit by bit. Nothing is divided
out or subtracted, so this is exact for every learning rate and for any number of tokens. Snapshots take a quarter of
the memory of keys and values at most, whatever N is.

Letters: see `lines`; `N` capacity, `n` slots in use, `D = Dk + Dv`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import reading
from kernels.lines import Block, Grid, Tokens, load_queries, load_tokens, segments
from kernels.numerics import inverse_norm, normalise_backward
from kernels.options import DictionaryOptions
from kernels.reading import Scratch, Sources
from kernels.selection import Assignment, choose_slots
from kernels.writing import Weights, line_index, update_weights, write_


def segment_length(options: DictionaryOptions) -> int:
    """Chunks between snapshots: their tokens are at least four times the slots."""
    return -(-4 * options.capacity // options.chunk_size)


class Dictionary(NamedTuple):
    """Dictionaries of all rows and heads, or of one row that all share.

    Args:
        counts: `[B, H, N]` int64.
        keys: `[B, H, N, Dk]`.
        values: `[B, H, N, Dv]`.
        size: `[B, H]` int64.
        tokens: `[B]` int64.
    """

    counts: Tensor
    keys: Tensor
    values: Tensor
    size: Tensor
    tokens: Tensor


class Walk(NamedTuple):
    """What a forward walk leaves behind, of all rows and heads; a block fills its part.

    Args:
        means: `[B, H, N, D]` keys beside values after the last update.
        counts: `[B, H, N]` int64.
        size: `[B, H]` int64.
        slots: `[B, H, closes L]` int32, the slot of each written token; -1 if masked, -2 - slot if it seeded the slot.
        snapshots: `[segments - 1, B, H, N, D]` means at the start of every segment but the first.
    """

    means: Tensor
    counts: Tensor
    size: Tensor
    slots: Tensor
    snapshots: Tensor


class Call(NamedTuple):
    """What every block of one call shares."""

    q: Tensor
    tokens: Tokens
    beta: Tensor
    dictionary: Dictionary
    options: DictionaryOptions
    grid: Grid
    closes: int


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


def decode(code: Tensor) -> Assignment:
    """What `encode` made."""
    seeds = code < -1
    return Assignment(torch.where(seeds, -2 - code, code).long(), seeds)


def sources(
    call: Call,
    block: Block,
    dictionary: Seen,
    kv: Tensor,
    valid: Tensor | None,
    queries: int,
    scratch: Scratch,
) -> Sources:
    """What the last `queries` positions of a chunk `kv [X, Y, m, D]` see, of the dictionary and of the chunk."""
    m, dk = kv.shape[2], call.q.shape[-1]
    read_out = call.options.read_out
    beta = block.head_view(call.beta)
    mu, slot_bias = reading.slot_sources(dictionary.keys, dictionary.counts, beta, read_out)
    if valid is None:
        token_bias = scratch.once("visibility", (queries, m), lambda: reading.visibility(queries, m, None, kv))
    else:
        token_bias = reading.visibility(queries, m, valid, kv)
    if read_out == "gmr":
        token_bias = token_bias - beta * reading.half_square(kv[..., :dk])
    if token_bias.dim() == 4:
        token_bias = token_bias.expand(*kv.shape[:2], queries, m).flatten(0, 1)
    tokens = kv.flatten(0, 1)
    nu = dictionary.values.flatten(0, 1)
    return Sources(mu.flatten(0, 1), nu, slot_bias.flatten(0, 1), tokens[..., :dk], tokens[..., dk:], token_bias)


def read_chunk(
    call: Call, block: Block, index: int, x: Sources, valid: Tensor | None, scratch: Scratch, o: Tensor
) -> None:
    """Write the outputs of chunk `index` into `o [B, T, H, Dv]`."""
    positions = call.grid.queries(index)
    q, _ = load_queries(block.view(call.q)[:, :, positions], block.head_view(call.beta), valid, scratch)
    out = scratch.take("out", q, *q.shape[:3], o.shape[-1])
    lines_q, lines_out = (t.view(x.mu.shape[0], -1, t.shape[-1]) for t in (q, out))
    for tile, seen in reading.tiles(x, q.shape[2]):
        reading.combine(reading.attend(lines_q[:, tile], seen, scratch), seen, lines_out[:, tile])
    if valid is not None:
        out.masked_fill_(~valid[..., -q.shape[2] :, None], 0.0)
    block.view(o)[:, :, positions] = out


def read_only(call: Call, block: Block, o: Tensor) -> None:
    """Outputs of a call that closes no chunk: one read, of dictionaries that may be shared by all rows."""
    scratch = Scratch()
    kv, valid, _, seen = _open_chunk(call, block)
    read_chunk(call, block, 0, sources(call, block, seen, kv, valid, call.q.shape[1], scratch), valid, scratch, o)


def _open_chunk(call: Call, block: Block) -> tuple[Tensor, Tensor | None, Tensor, Seen]:
    """Tokens, mask and inverse norms of the only chunk, and the dictionary without a copy of it."""
    x, y = block.view(call.q).shape[:2]
    _, m = call.grid.bounds(0)
    counts, keys, values, size = (block.dictionaries(t) for t in call.dictionary[:4])
    kv = keys.new_empty(x, y, m, keys.shape[-1] + values.shape[-1])
    valid, inverse = load_tokens(block, call.tokens, call.grid, 0, kv)
    return kv, valid, inverse, in_use(int(size.max()), counts, keys, values)


def forward(call: Call, block: Block, walk: Walk, o: Tensor) -> None:
    """Walk a block's chunks; fill its part of the outputs `o [B, T, H, Dv]` and of `walk`."""
    grid, options, closes = call.grid, call.options, call.closes
    scratch = Scratch()
    counts, keys, values, size = (block.view_lines(t) for t in call.dictionary[:4])
    tokens = call.dictionary.tokens[block.rows].clone()
    dk = keys.shape[-1]
    means = torch.cat([keys, values], -1)
    slots, snapshots = block.view_lines(walk.slots), walk.snapshots[:, block.rows, block.heads]
    every = segment_length(options)
    buffer = means.new_empty(*size.shape, grid.length, means.shape[-1])
    for index in range(grid.chunks):
        start, stop = grid.bounds(index)
        if index and index % every == 0 and len(snapshots):
            snapshots[index // every - 1] = means
        used = int(size.max())
        kv = buffer[:, :, : stop - start]
        valid, _ = load_tokens(block, call.tokens, grid, index, kv)
        queries = grid.queries(index)
        if queries.stop > queries.start:
            s = queries.stop - queries.start
            x = sources(call, block, in_use(used, counts, means[..., :dk], means[..., dk:]), kv, valid, s, scratch)
            read_chunk(call, block, index, x, valid, scratch, o)
        if index < closes:
            mask = None if valid is None else valid[:, 0]
            origin = (block.rows.start, block.heads.start)
            choice, size = choose_slots(kv[..., :dk], mask, means[:, :, :used, :dk], size, tokens, options, origin)
            weights = update_weights(choice, counts, options, means.dtype)
            write_(means, kv, line_index(choice, means.shape[2]), weights.share)
            counts = weights.counts
            tokens += stop - start if mask is None else mask.sum(-1)
            if slots.shape[-1]:
                slots[:, :, start:stop] = encode(choice)
    block.view_lines(walk.means).copy_(means)
    block.view_lines(walk.counts).copy_(counts)
    block.view_lines(walk.size).copy_(size)


class Gradients(NamedTuple):
    """Gradients of a call, of all rows and heads; a block fills its part.

    Args:
        q: `[B, T, H, Dk]`.
        k: `[B, T, H, Dk]`.
        v: `[B, T, H, Dv]`.
        beta: `[B, H]`, to be summed over rows.
        pending_k: `[B, p, H, Dk]`.
        pending_v: `[B, p, H, Dv]`.
        means: `[B, H, N, D]` of the initial dictionary; of one row where that is shared, of no row if nobody wants it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    pending_k: Tensor
    pending_v: Tensor
    means: Tensor


def read_backward(
    call: Call,
    block: Block,
    index: int,
    dictionary: Seen,
    kv: Tensor,
    valid: Tensor | None,
    scratch: Scratch,
    d_o: Tensor,
    d_means: Tensor | None,
    d_kv: Tensor,
    grads: Gradients,
) -> None:
    """Back through the read of one chunk.

    Adds to `d_means [X, Y or 1, n, D]` and to `d_kv [X, Y, m, D]`, the gradient of the chunk's normalised keys and
    values; fills those of the queries and adds that of beta in `grads`.
    """
    read_out, dk = call.options.read_out, call.q.shape[-1]
    beta = block.head_view(call.beta)
    positions = call.grid.queries(index)
    q, inverse = load_queries(block.view(call.q)[:, :, positions], beta, valid, scratch)
    x = sources(call, block, dictionary, kv, valid, q.shape[2], scratch)
    n = x.mu.shape[1]
    d_out = scratch.take("d_out", kv, *q.shape[:3], d_o.shape[-1])
    d_out.copy_(block.view(d_o)[:, :, positions])
    if valid is not None:
        d_out.masked_fill_(~valid[..., -q.shape[2] :, None], 0.0)
    d_mu = d_nu = None
    if d_means is not None:
        d_nu = d_means.flatten(0, 1)[..., dk:]
        d_mu = d_means.flatten(0, 1)[..., :dk] if read_out == "raw" else torch.zeros_like(x.mu)
    d_q = scratch.take("d_q", q, *q.shape)
    lines_q, lines_d_q, lines_d_out = (t.view(x.mu.shape[0], -1, t.shape[-1]) for t in (q, d_q, d_out))
    of_logits = q.new_zeros(*kv.shape[:2], 1, n + kv.shape[2]) if read_out == "gmr" else None  # summed over queries
    for tile, seen in reading.tiles(x, q.shape[2]):
        weights = reading.attend(lines_q[:, tile], seen, scratch)
        d_tokens = d_kv.flatten(0, 1)[:, : seen.k.shape[1]]
        logits = reading.attend_backward(
            lines_d_out[:, tile],
            lines_q[:, tile],
            weights,
            seen,
            scratch,
            lines_d_q[:, tile],
            d_mu,
            d_nu,
            d_tokens[..., :dk],
            d_tokens[..., dk:],
        )
        if of_logits is not None:
            of_logits[..., : logits.shape[-1]] += logits.view(*kv.shape[:2], -1, logits.shape[-1]).sum(2, keepdim=True)
    unit = q / beta
    d_beta = (d_q * unit).sum((-1, -2))
    if of_logits is not None:
        of_slots, of_tokens = of_logits[..., :n], of_logits[..., n:]
        d_kv[..., :dk] -= beta * of_tokens.mT * kv[..., :dk]
        d_beta -= (of_tokens * reading.half_square(kv[..., :dk])).sum((-1, -2))
        d_beta -= (of_slots * reading.half_square(dictionary.keys)).sum((-1, -2))
        if d_mu is not None:
            of_slots = of_slots.sum_to_size(*dictionary.counts.shape[:2], 1, n)
            d_mu -= (beta * of_slots.mT * dictionary.keys).flatten(0, 1)
    if d_means is not None and d_mu is not None and read_out != "raw":
        if read_out == "unit":
            inverse_mu = inverse_norm(dictionary.keys).flatten(0, 1)
            d_mu = normalise_backward(x.mu, inverse_mu, d_mu)
        d_means[..., :dk] += d_mu.view(dictionary.keys.shape)
    block.view_lines(grads.beta).add_(d_beta)
    block.view(grads.q)[:, :, positions] = normalise_backward(unit, inverse, beta * d_q)


def store_token_gradients(
    call: Call,
    block: Block,
    index: int,
    kv: Tensor,
    valid: Tensor | None,
    inverse: Tensor,
    d_kv: Tensor,
    grads: Gradients,
) -> None:
    """Put the gradient `d_kv [X, Y, m, D]` of a chunk's normalised keys and values where those of the inputs belong."""
    start, _ = call.grid.bounds(index)
    p, dk = call.grid.pending, call.q.shape[-1]
    old = max(p - start, 0)
    if valid is not None:
        d_kv = d_kv.masked_fill(~valid[..., None], 0.0)
    if old:
        block.view(grads.pending_k)[:, :, start:p] = d_kv[:, :, :old, :dk]
        block.view(grads.pending_v)[:, :, start:p] = d_kv[:, :, :old, dk:]
    new = call.grid.queries(index)
    block.view(grads.k)[:, :, new] = normalise_backward(kv[:, :, old:, :dk], inverse, d_kv[:, :, old:, :dk])
    block.view(grads.v)[:, :, new] = d_kv[:, :, old:, dk:]


def read_only_backward(call: Call, block: Block, d_o: Tensor, grads: Gradients) -> None:
    """Back through `read_only`."""
    kv, valid, inverse, seen = _open_chunk(call, block)
    d_means = kv.new_zeros(*seen.keys.shape[:3], kv.shape[-1]) if grads.means.shape[0] else None
    d_kv = torch.zeros_like(kv)
    read_backward(call, block, 0, seen, kv, valid, Scratch(), d_o, d_means, d_kv, grads)
    if d_means is not None:
        block.dictionaries(grads.means)[:, :, : d_means.shape[2]] = d_means
    store_token_gradients(call, block, 0, kv, valid, inverse, d_kv, grads)


class Undo(NamedTuple):
    """What the walk back needs of one chunk.

    Args:
        counts: `[X, Y, N]` before its update.
        kv: `[X, Y, m, D]` its tokens.
        valid: see `load_tokens`.
        inverse: see `load_tokens`.
        weights: of its update; None if it does not close.
        rows: `[X Y m]` which rows of the means the update writes.
        overwritten: `[X Y m, D]` what they were.
    """

    counts: Tensor
    kv: Tensor
    valid: Tensor | None
    inverse: Tensor
    weights: Weights | None
    rows: Tensor
    overwritten: Tensor


def backward(call: Call, block: Block, walk: Walk, d_o: Tensor, d_means: Tensor | None, grads: Gradients) -> None:
    """Walk a block's chunks back; `d_means [B, H, N, D]` is the gradient of the last dictionary, if there is one."""
    grid, options = call.grid, call.options
    scratch = Scratch()
    counts, keys, values = (block.view_lines(t) for t in call.dictionary[:3])
    x, y, capacity, dk = keys.shape
    d = dk + values.shape[-1]
    codes = block.view_lines(walk.slots)
    snapshots = walk.snapshots[:, block.rows, block.heads]
    d_dictionary = keys.new_zeros(x, y, capacity, d)
    if d_means is not None:
        d_dictionary += block.view_lines(d_means)
    every = segment_length(options)
    parts = list(segments(grid.chunks, every))
    starts = [counts]  # counts at the start of every segment
    for part in parts[:-1]:
        codes_of_part = codes[:, :, part.start * grid.length : part.stop * grid.length]
        starts.append(update_weights(decode(codes_of_part), starts[-1], options, keys.dtype).counts)

    buffer = keys.new_empty(min(every, grid.chunks), x, y, grid.length, d)
    for number, part in reversed(list(enumerate(parts))):
        means = torch.cat([keys, values], -1) if number == 0 else snapshots[number - 1].clone()
        undo = _replay(call, block, part, means, starts[number], codes, buffer)
        for index, step in zip(reversed(part), reversed(undo), strict=True):
            d_kv = torch.zeros_like(step.kv)
            if step.weights is not None:
                flat = d_dictionary.view(-1, d)
                torch.mul(flat.index_select(0, step.rows), step.weights.share.view(-1, 1), out=d_kv.view(-1, d))
                d_dictionary *= step.weights.kept[..., None]
                means.view(-1, d).index_copy_(0, step.rows, step.overwritten)
            queries = grid.queries(index)
            if queries.stop > queries.start:
                used = int((step.counts > 0).sum(-1).max())
                seen = in_use(used, step.counts, means[..., :dk], means[..., dk:])
                d_seen = d_dictionary[:, :, : seen.counts.shape[2]]
                read_backward(call, block, index, seen, step.kv, step.valid, scratch, d_o, d_seen, d_kv, grads)
            store_token_gradients(call, block, index, step.kv, step.valid, step.inverse, d_kv, grads)
    if grads.means.shape[0]:
        block.view_lines(grads.means).copy_(d_dictionary)


def _replay(
    call: Call, block: Block, part: range, means: Tensor, counts: Tensor, codes: Tensor, buffer: Tensor
) -> list[Undo]:
    """Bring `means [X, Y, N, D]` from the start of a segment to its end; what it takes to go back, chunk by chunk.

    A row that two tokens write is kept twice, with the same content: putting rows back needs no order.
    """
    undo = []
    for step, index in enumerate(part):
        start, stop = call.grid.bounds(index)
        kv = buffer[step].view(-1)[: means.shape[0] * means.shape[1] * (stop - start) * means.shape[-1]]
        kv = kv.view(*means.shape[:2], stop - start, means.shape[-1])
        valid, inverse = load_tokens(block, call.tokens, call.grid, index, kv)
        if index >= call.closes:
            undo.append(Undo(counts, kv, valid, inverse, None, counts, counts))
            break
        choice = decode(codes[:, :, start:stop])
        weights = update_weights(choice, counts, call.options, means.dtype)
        rows = line_index(choice, means.shape[2])
        overwritten = means.view(-1, means.shape[-1]).index_select(0, rows)
        undo.append(Undo(counts, kv, valid, inverse, weights, rows, overwritten))
        write_(means, kv, rows, weights.share)
        counts = weights.counts
    return undo
