"""The walk back along the chunks of a block of lines, which needs every dictionary of the way there.

The tokens' slots are kept (one integer each), so dictionaries can be made again without any similarity: from snapshots
a fixed number of chunks apart, a segment at a time. Within the segment each update leaves the rows that it overwrote,
and the walk back puts them back bit by bit. Nothing is divided out or subtracted, so this is exact for every learning
rate and for any number of tokens. Snapshots take a quarter of the memory of keys and values at most, whatever N is.

Letters: see `lines`; `N` capacity, `n` slots in use, `D = Dk + Dv`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import reading
from kernels.lines import Block, load_queries, load_tokens, segments
from kernels.numerics import inverse_norm, normalise_backward
from kernels.reading import Scratch
from kernels.scan import Call, Seen, Walk, decode, in_use, open_chunk, segment_length, sources
from kernels.writing import Weights, line_index, update_weights, write_


class Gradients(NamedTuple):
    """Gradients of a call, of all rows and heads; a block fills its part.

    Args:
        q: `[B, T, H, Dk]`.
        k: `[B, T, G, Dk]`.
        v: `[B, T, G, Dv]`.
        beta: `[B, H]`, to be summed over rows.
        slot_bias: `[B, H]`, likewise; of no row if there is none.
        pending_k: `[B, p, G, Dk]`.
        pending_v: `[B, p, G, Dv]`.
        means: `[B, G, N, D]` of the initial dictionary; of one row where that is shared, of no row if nobody wants it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    slot_bias: Tensor
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
    values; fills those of the queries and adds those of beta and of the slots' bias in `grads`.
    """
    read_out, dk, group = call.options.read_out, call.q.shape[-1], block.group
    beta = block.head_view(call.beta)
    scale = beta[:, :, None]
    positions = call.grid.queries(index)
    q, inverse = load_queries(block.view_queries(call.q)[:, :, positions], scale, valid, scratch)
    x = sources(call, block, dictionary, kv, valid, q.shape[2], scratch)
    n = x.mu.shape[1]
    d_out = scratch.take("d_out", kv, *q.shape[:4], d_o.shape[-1])
    d_out.copy_(block.view_queries(d_o)[:, :, positions])
    if valid is not None:
        d_out.masked_fill_(~valid[..., -q.shape[2] :, None, None], 0.0)
    d_mu = d_nu = None
    if d_means is not None:
        d_nu = d_means.flatten(0, 1)[..., dk:]
        d_mu = d_means.flatten(0, 1)[..., :dk] if read_out == "raw" else torch.zeros_like(x.mu)
    d_q = scratch.take("d_q", q, *q.shape)
    lines_q, lines_d_q, lines_d_out = (t.view(x.mu.shape[0], -1, t.shape[-1]) for t in (q, d_q, d_out))
    of_logits = None  # summed over queries
    if read_out == "gmr" or call.slot_bias is not None:
        of_logits = q.new_zeros(*kv.shape[:2], group, n + kv.shape[2])
    for tile, seen in reading.tiles(x, q.shape[2], group):
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
            of_logits[..., : logits.shape[-1]] += logits.view(*kv.shape[:2], -1, group, logits.shape[-1]).sum(2)
    unit = q / scale
    d_beta = (d_q * unit).sum((2, 4))
    if of_logits is not None:
        of_slots, of_tokens = of_logits[..., :n], of_logits[..., n:]
        if call.slot_bias is not None:
            _by_query_head(block, grads.slot_bias).add_(of_slots.sum(-1))
        if read_out == "gmr":
            d_kv[..., :dk] -= (beta * of_tokens).sum(2)[..., None] * kv[..., :dk]
            d_beta -= (of_tokens * reading.half_square(kv[..., :dk])).sum(-1)
            d_beta -= (of_slots * reading.half_square(dictionary.keys)).sum(-1)
            if d_mu is not None:
                of_slots = (beta * of_slots).sum_to_size(*dictionary.counts.shape[:2], 1, n)
                d_mu -= (of_slots.mT * dictionary.keys).flatten(0, 1)
    if d_means is not None and d_mu is not None and read_out != "raw":
        if read_out == "unit":
            inverse_mu = inverse_norm(dictionary.keys).flatten(0, 1)
            d_mu = normalise_backward(x.mu, inverse_mu, d_mu)
        d_means[..., :dk] += d_mu.view(dictionary.keys.shape)
    _by_query_head(block, grads.beta).add_(d_beta)
    block.view_queries(grads.q)[:, :, positions] = normalise_backward(unit, inverse, scale * d_q)


def _by_query_head(block: Block, x: Tensor) -> Tensor:
    """`[B, H]` as `[X, Y, g]` of this block."""
    return block.view_lines(x.unflatten(1, (-1, block.group)))


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
    kv, valid, inverse, seen = open_chunk(call, block)
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
    """Walk a block's chunks back; `d_means [B, G, N, D]` is the gradient of the last dictionary, if there is one."""
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
