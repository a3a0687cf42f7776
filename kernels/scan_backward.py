"""The scan back along the chunks of a block of batch heads, which needs every dictionary of the way there.

The tokens' slots are kept (one integer each), so dictionaries can be made again without any similarity: from snapshots
a fixed number of chunks apart, a segment at a time. Within the segment each update leaves the rows that it overwrote,
and the scan back puts them back bit by bit. Nothing is divided out or subtracted, so this is exact for every learning
rate and for any number of tokens. Snapshots take a quarter of the memory of keys and values at most, whatever N is.

Letters: see `batch_heads`; `N` capacity, `n` slots in use, `D = Dk + Dv`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import reading
from kernels.batch_heads import Block, Call, Chunk, load_queries, load_tokens, segments
from kernels.numerics import inverse_norm, normalise_backward
from kernels.options import DictionaryOptions
from kernels.reading import Scratch, SourceGradients
from kernels.recycling import Union, union_of, unite_, unite_backward_
from kernels.scan import Record, ScanResult, Seen, in_use, open_chunk, segment_length, sources
from kernels.schema import Gradients
from kernels.writing import Weights, flat_slots, update_weights, write_


class Job(NamedTuple):
    """A block's share of the way back.

    Args:
        call: whose gradient it is.
        block: of the call.
        scratch: buffers.
        d_o: `[B, T, H, Dv]` gradient of the outputs.
        grads: of all rows and heads; the block fills its part.
    """

    call: Call
    block: Block
    scratch: Scratch
    d_o: Tensor
    grads: Gradients


def read_backward(job: Job, dictionary: Seen, chunk: Chunk, d_means: Tensor | None, d_kv: Tensor) -> None:
    """Back through the read of one chunk.

    Adds to `d_means [X, Y or 1, n, D]` and to `d_kv [X, Y, m, D]`, the gradient of the chunk's normalised keys and
    values; fills those of the queries and adds those of beta and of the slots' bias in `job.grads`.
    """
    (call, block, scratch, d_o, grads), (_, kv, valid, _) = job, chunk
    read_out, dk, group = call.x.options.read_out, call.x.q.shape[-1], block.group
    beta = block.head_view(call.x.beta)
    scale = beta[:, :, None]
    positions = call.grid.queries(chunk.number)
    norm = call.x.options.query_norm
    queries = block.view_queries(call.x.q)[:, :, positions]
    unscaled, inverse = load_queries(queries, valid, beta.dtype, scratch, norm=norm)
    q = torch.mul(unscaled, scale, out=scratch.take("scaled", unscaled, *unscaled.shape))
    x = sources(call, block, dictionary, chunk, scratch)
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
    flat_q, flat_d_q, flat_d_out = (t.view(x.mu.shape[0], -1, t.shape[-1]) for t in (q, d_q, d_out))
    of_logits = None  # summed over queries
    if read_out == "gmr" or call.x.slot_bias is not None:
        of_logits = q.new_zeros(*kv.shape[:2], group, n + kv.shape[2])
    for tile, seen in reading.tiles(x, q.shape[2], group):
        d_tokens = d_kv.flatten(0, 1)[:, : seen.k.shape[1]]
        add = SourceGradients(d_mu, d_nu, d_tokens[..., :dk], d_tokens[..., dk:])
        logits = reading.attend_backward(flat_d_out[:, tile], flat_q[:, tile], seen, scratch, flat_d_q[:, tile], add)
        if of_logits is not None:
            of_logits[..., : logits.shape[-1]] += logits.view(*kv.shape[:2], -1, group, logits.shape[-1]).sum(2)
    d_beta = (d_q * unscaled).sum((2, 4))
    if of_logits is not None:
        of_slots, of_tokens = of_logits[..., :n], of_logits[..., n:]
        if call.x.slot_bias is not None:
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
    d_q = scale * d_q if inverse is None else normalise_backward(unscaled, inverse, scale * d_q)
    block.view_queries(grads.q)[:, :, positions] = d_q


def _by_query_head(block: Block, x: Tensor) -> Tensor:
    """`[B, H]` as `[X, Y, g]` of this block."""
    return block.view_batch_heads(x.unflatten(1, (-1, block.group)))


def store_token_gradients(job: Job, chunk: Chunk, d_kv: Tensor) -> None:
    """Put the gradient `d_kv [X, Y, m, D]` of a chunk's normalised keys and values where those of the inputs belong."""
    grid, block, grads = job.call.grid, job.block, job.grads
    start, _ = grid.bounds(chunk.number)
    p, dk = grid.pending, job.call.x.q.shape[-1]
    old = max(p - start, 0)
    if chunk.valid is not None:
        d_kv = d_kv.masked_fill(~chunk.valid[..., None], 0.0)
    if old:
        block.view(grads.pending_keys)[:, :, start:p] = d_kv[:, :, :old, :dk]
        block.view(grads.pending_values)[:, :, start:p] = d_kv[:, :, :old, dk:]
    new, d_keys = grid.queries(chunk.number), d_kv[:, :, old:, :dk]
    block.view(grads.k)[:, :, new] = normalise_backward(chunk.kv[:, :, old:, :dk], chunk.inverse, d_keys)
    block.view(grads.v)[:, :, new] = d_kv[:, :, old:, dk:]


def read_only_backward(call: Call, block: Block, d_o: Tensor, grads: Gradients) -> None:
    """Back through `read_only`."""
    job = Job(call, block, Scratch(), d_o, grads)
    chunk, seen = open_chunk(call, block)
    d_means = chunk.kv.new_zeros(*seen.keys.shape[:3], chunk.kv.shape[-1]) if grads.means.shape[0] else None
    d_kv = torch.zeros_like(chunk.kv)
    read_backward(job, seen, chunk, d_means, d_kv)
    if d_means is not None:
        block.dictionaries(grads.means)[:, :, : d_means.shape[2]] = d_means
    store_token_gradients(job, chunk, d_kv)


class Undo(NamedTuple):
    """What the scan back needs of one chunk.

    Args:
        chunk: its tokens.
        counts: `[X, Y, N]` before its update.
        weights: of its update; None if it is not full.
        union: of its update; None if no slots unite.
        rows: `[X Y m]` which rows of the means its tokens are written to.
        overwritten: rows of the means, and what they were, one after the other.
    """

    chunk: Chunk
    counts: Tensor
    weights: Weights | None
    union: Union | None
    rows: Tensor
    overwritten: list[tuple[Tensor, Tensor]]


def backward(
    call: Call, block: Block, result: ScanResult, d_o: Tensor, d_means: Tensor | None, grads: Gradients
) -> None:
    """Scan a block's chunks back; `d_means [B, G, N, D]` is the gradient of the last dictionary, if there is one."""
    grid, options, state = call.grid, call.x.options, call.x.state
    job = Job(call, block, Scratch(), d_o, grads)
    counts, keys, values = (block.view_batch_heads(t) for t in (state.counts, state.keys, state.values))
    x, y, capacity, dk = keys.shape
    d = dk + values.shape[-1]
    record = Record(block.view_batch_heads(result.slots), block.view_batch_heads(result.united))
    snapshots = result.snapshots[:, block.rows, block.heads]
    d_dictionary = keys.new_zeros(x, y, capacity, d)
    if d_means is not None:
        d_dictionary += block.view_batch_heads(d_means)
    every = segment_length(options)
    parts = list(segments(grid.chunks, every))
    starts = [counts]  # counts at the start of every segment
    for part in parts[:-1]:
        starts.append(_counts_after(part, starts[-1], record, grid.length, options))

    buffer = keys.new_empty(min(every, grid.chunks), x, y, grid.length, d)
    for number, part in reversed(list(enumerate(parts))):
        means = torch.cat([keys, values], -1) if number == 0 else snapshots[number - 1].clone()
        undo = _replay(job, part, means, starts[number], record, buffer)
        for chunk, counts, weights, union, rows, overwritten in reversed(undo):
            d_kv = torch.zeros_like(chunk.kv)
            if weights is not None:
                flat = d_dictionary.view(-1, d)
                torch.mul(flat.index_select(0, rows), weights.share.view(-1, 1), out=d_kv.view(-1, d))
                d_dictionary *= weights.kept[..., None]
                if union is not None:
                    unite_backward_(d_dictionary, union)
                for where, content in overwritten:
                    means.view(-1, d).index_copy_(0, where, content)
            queries = grid.queries(chunk.number)
            if queries.stop > queries.start:
                used = int((counts > 0).sum(-1).max())
                seen = in_use(used, counts, means[..., :dk], means[..., dk:])
                read_backward(job, seen, chunk, d_dictionary[:, :, : seen.counts.shape[2]], d_kv)
            store_token_gradients(job, chunk, d_kv)
    if grads.means.shape[0]:
        block.view_batch_heads(grads.means).copy_(d_dictionary)


def _counts_after(part: range, counts: Tensor, record: Record, length: int, options: DictionaryOptions) -> Tensor:
    """Counts `[X, Y, N]` after a segment of chunks of `length`, given those before it."""
    step = length if record.united.shape[-1] else len(part) * length  # unions depend on counts, so chunk by chunk
    for start in range(part.start * length, part.stop * length, step):
        choice = record.choice(start, start + step)
        union = union_of(choice.slots, choice.united, counts, torch.float64)
        counts = update_weights(choice, counts if union is None else union.counts, options, torch.float64).counts
    return counts


def _replay(job: Job, part: range, means: Tensor, counts: Tensor, record: Record, buffer: Tensor) -> list[Undo]:
    """Bring `means [X, Y, N, D]` from the start of a segment to its end; what it takes to go back, chunk by chunk.

    A row that two tokens write is kept twice, with the same content: putting rows back needs no order.
    """
    undo = []
    flat = means.view(-1, means.shape[-1])
    for step, index in enumerate(part):
        start, stop = job.call.grid.bounds(index)
        kv = buffer[step].view(-1)[: means.shape[0] * means.shape[1] * (stop - start) * means.shape[-1]]
        kv = kv.view(*means.shape[:2], stop - start, means.shape[-1])
        chunk = load_tokens(job.call, job.block, index, kv)
        if index >= job.call.full_chunks:
            undo.append(Undo(chunk, counts, None, None, counts, []))
            break
        choice = record.choice(start, stop)
        union = union_of(choice.slots, choice.united, counts, means.dtype)
        after_union = counts if union is None else union.counts
        weights = update_weights(choice, after_union, job.call.x.options, means.dtype)
        rows = flat_slots(choice, means.shape[2])
        touched = [rows] if union is None else [rows, union.kept]
        overwritten = [(where, flat.index_select(0, where)) for where in touched]
        undo.append(Undo(chunk, counts, weights, union, rows, overwritten))
        if union is not None:
            unite_(means, union)
        write_(means, kv, rows, weights.share)
        counts = weights.counts
    return undo
