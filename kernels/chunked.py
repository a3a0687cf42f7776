"""OVQ attention chunk by chunk in matrix products, registered as a PyTorch operator with its own gradient.

`torch.compile`, `torch.export` and autograd see one operator, `ovq::attention`, and its gradient,
`ovq::attention_backward`. What both do is in `scan` and `scan_backward`; here is what makes them operators: threads,
shapes without data, and the state put together around them.

Letters: `B` rows, `T` tokens, `H` query heads, `G` key/value heads, `Dk`/`Dv` key and value size, `N` capacity, `L`
chunk, `p` pending positions, `B'` rows of the initial state (1 or B), `D = Dk + Dv`.
"""

from functools import partial

import torch
from torch import Tensor

from kernels import reading, scan, scan_backward
from kernels.batch_heads import Block, Call, Grid, blocks
from kernels.numerics import normalise
from kernels.registration import Operator, refuse_transforms, register
from kernels.scan import ScanResult
from kernels.schema import Arguments, Gradients
from kernels.state import DictionaryState
from kernels.threads import run, threads_for


def attention(
    x: Arguments, output_final_state: bool, operator: str = "attention"
) -> tuple[Tensor, DictionaryState | None]:
    """See `kernels.ovq_attention`.

    `operator` is the registered one that does the work.

    Where no chunk is filled the final state shares the dictionary of the initial one: decoding token by token copies it
    once a chunk.
    """
    (b, t), state, mask = x.q.shape[:2], x.state, x.mask
    p, length = state.pending, x.options.chunk_size
    # The last chunk's update serves the final state alone.
    full_chunks = (p + t) // length if output_final_state else max(p + t - 1, 0) // length
    learned = (x.q, x.k, x.v, x.beta, x.slot_bias, state.keys, state.values, state.pending_keys, state.pending_values)
    refuse_transforms(*learned, mask)
    differentiate = torch.is_grad_enabled() and any(y is not None and y.requires_grad for y in learned)
    o, means, counts, size, *_ = getattr(torch.ops.ovq, operator)(*x.pack(), full_chunks, differentiate)
    if not output_final_state:
        return o, None

    kept = (p + t) - full_chunks * length
    old, new = max(kept - t, 0), min(kept, t)  # pending tokens that stay, new ones that join them
    dtype = state.keys.dtype
    if mask is None:
        mask = torch.ones(b, t, dtype=torch.bool, device=x.q.device)
    new_mask = mask[:, t - new :]
    hidden = ~new_mask[..., None, None]
    new_k = normalise(x.k[:, t - new :].to(dtype).masked_fill(hidden, 0.0))
    new_v = x.v[:, t - new :].to(dtype).masked_fill(hidden, 0.0)
    rows = state.expand(b)
    final = rows.replace(
        pending_keys=torch.cat([rows.pending_keys[:, p - old :], new_k], 1),
        pending_values=torch.cat([rows.pending_values[:, p - old :], new_v], 1),
        pending_mask=torch.cat([rows.pending_mask[:, p - old :], new_mask], 1),
    )
    if full_chunks:
        dk = x.k.shape[-1]
        absorbed = full_chunks * length - p  # of the new tokens
        final = final.replace(
            counts=counts,
            keys=means[..., :dk],
            values=means[..., dk:],
            size=size,
            tokens=rows.tokens + rows.pending_mask.sum(-1) + mask[:, :absorbed].sum(-1),
        )
    return o, final


def _call(x: Arguments, full_chunks: int) -> tuple[Call, list[Block], int]:
    """The call that these arguments make, its blocks, and the threads to share them.

    Autograd is told about none of it, so tensors are detached: threads of a block's own would record otherwise.
    """
    (b, t, h, _), g = x.q.shape, x.k.shape[2]
    group, options, state = h // g, x.options, x.state.detach()
    shared = full_chunks == 0 and state.batch == 1 and b > 1
    rows = state.expand(b)
    if shared:
        rows = state.replace(
            pending_keys=rows.pending_keys, pending_values=rows.pending_values, pending_mask=rows.pending_mask
        )
    dtype = state.keys.dtype
    mask = torch.ones(b, t, dtype=torch.bool, device=x.q.device) if x.mask is None else x.mask
    x = Arguments(
        x.q.detach(),
        x.k.detach(),
        x.v.detach(),
        x.beta.detach().to(dtype),
        None if x.slot_bias is None else x.slot_bias.detach().to(dtype),
        mask,
        rows,
        options,
    )
    grid = Grid(state.pending, t, options.chunk_size)
    call = Call(x, grid, full_chunks, bool(mask.all()) and bool(state.pending_mask.all()))
    chunk = min(options.chunk_size, grid.pending + t)
    size = rows.size
    most = min(options.capacity, int(size.max()) + full_chunks * options.chunk_size) if size.numel() else 0
    scores = min(chunk * group, reading.TILE) * (most + chunk)
    threads = threads_for(b * h * t * (most + chunk), x.q.device)
    return call, blocks(b, g, group, scores, threads, shared), threads


def _forward(x: Arguments, full_chunks: int, differentiate: bool) -> ScanResult:
    """Outputs, and where chunks are filled the rest of a `ScanResult`; its last three only to `differentiate`."""
    result = outputs(x, full_chunks, differentiate)
    if not x.q.numel() and not x.v.numel():
        return result
    # Statistics stay fp32 whatever surrounds the call.
    with torch.autocast(x.q.device.type, enabled=False), torch.no_grad():
        call, parts, threads = _call(x, full_chunks)
        work = scan.forward if full_chunks else scan.read_only
        run([partial(work, call, block, result) for block in parts], threads)
    return result


def outputs(x: Arguments, full_chunks: int, differentiate: bool) -> ScanResult:
    """Outputs of the right shapes, to be filled."""
    (b, t, g, dk), dv, state = x.k.shape, x.v.shape[-1], x.state
    n, length = x.options.capacity, x.options.chunk_size
    rows = b if full_chunks else 0
    chunks = (state.pending + t + length - 1) // length
    written = full_chunks * length if differentiate else 0
    united = written if x.options.growth == "recycle" else 0
    snapshots = (chunks - 1) // scan.segment_length(x.options) if full_chunks and differentiate else 0
    return ScanResult(
        x.v.new_empty(b, t, x.q.shape[2], dv),
        state.keys.new_zeros(rows, g, n, dk + dv),
        state.counts.new_zeros(rows, g, n),
        state.size.new_zeros(rows, g),
        state.counts.new_zeros(rows, g, written, dtype=torch.int32),
        state.counts.new_zeros(rows, g, united, dtype=torch.int32),
        # Zeros that nobody touches take no memory, and most of a snapshot of a dictionary that still grows is such.
        state.keys.new_zeros(snapshots, rows, g, n, dk + dv),
    )


def backward(
    x: Arguments, full_chunks: int, result: ScanResult, d_o: Tensor, d_means: Tensor | None, wants_means: bool
) -> Gradients:
    """Gradients of the arguments, see `registration.Operator`."""
    grads = Gradients.empty(x, full_chunks, wants_means)
    if not x.q.numel() and not x.v.numel():
        return grads
    with torch.autocast(x.q.device.type, enabled=False), torch.no_grad():
        call, parts, threads = _call(x, full_chunks)
        if full_chunks:
            run([partial(scan_backward.backward, call, part, result, d_o, d_means, grads) for part in parts], threads)
            return grads
        if wants_means and parts[0].shared:
            # Rows that share a dictionary add to one gradient: one block must have them all.
            parts = list({part.heads.start: part._replace(rows=slice(0, x.q.shape[0])) for part in parts}.values())
        run([partial(scan_backward.read_only_backward, call, part, d_o, grads) for part in parts], threads)
    return grads


register(Operator("attention", ScanResult, ("slots", "united", "snapshots"), _forward, outputs, backward))
