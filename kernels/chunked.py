"""OVQ attention chunk by chunk in matrix products, registered as a PyTorch operator with its own gradient.

`torch.compile`, `torch.export` and autograd see one operator, `ovq::attention`, and its gradient,
`ovq::attention_backward`. What both do is in `scan` and `scan_backward`; here is what makes them operators: tensors
in, tensors out, shapes without data, and the state put together around them.

Letters: `B` rows, `T` tokens, `H` query heads, `G` key/value heads, `Dk`/`Dv` key and value size, `N` capacity, `L`
chunk, `p` pending positions, `B'` rows of the initial state (1 or B), `C` chunks that close, `D = Dk + Dv`.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels import reading, scan, scan_backward
from kernels.lines import Block, Grid, Tokens, blocks
from kernels.numerics import normalise
from kernels.options import DictionaryOptions, options_of
from kernels.registration import argument_gradients, define, no_second_derivative, refuse_transforms
from kernels.scan import Call, Dictionary, Walk
from kernels.scan_backward import Gradients
from kernels.state import DictionaryState
from kernels.threads import run, threads_for


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    slot_bias: Tensor | None,
    options: DictionaryOptions,
    mask: Tensor | None,
    state: DictionaryState,
    output_final_state: bool,
    operator: str = "attention",
) -> tuple[Tensor, DictionaryState | None]:
    """See `kernels.ovq_attention`; arguments are checked, `state` may have one row for all.

    `operator` is the registered one that does the work: they all take and give the same, except that only others than
    `attention` may be told by None that no new token is masked.

    Where no chunk closes the final state shares the dictionary of the initial one: decoding token by token copies it
    once a chunk.
    """
    b, t = q.shape[:2]
    p, length = state.pending, options.chunk_size
    # The last chunk's update serves the final state alone.
    closes = (p + t) // length if output_final_state else max(p + t - 1, 0) // length
    inputs = (q, k, v, beta, state.keys, state.values, state.pending_keys, state.pending_values)
    learned = inputs if slot_bias is None else (*inputs, slot_bias)
    refuse_transforms(*learned, mask)
    differentiate = torch.is_grad_enabled() and any(x.requires_grad for x in learned)
    o, means, counts, size, *_ = getattr(torch.ops.ovq, operator)(
        q,
        k,
        v,
        beta,
        slot_bias,
        mask,
        state.counts,
        state.keys,
        state.values,
        state.size,
        state.tokens,
        state.pending_keys,
        state.pending_values,
        state.pending_mask,
        options.text,
        closes,
        differentiate,
    )
    if not output_final_state:
        return o, None

    kept = (p + t) - closes * length
    old, new = max(kept - t, 0), min(kept, t)  # pending tokens that stay, new ones that join them
    dtype = state.keys.dtype
    if mask is None:
        mask = torch.ones(b, t, dtype=torch.bool, device=q.device)
    new_mask = mask[:, t - new :]
    hidden = ~new_mask[..., None, None]
    new_k = normalise(k[:, t - new :].to(dtype).masked_fill(hidden, 0.0))
    new_v = v[:, t - new :].to(dtype).masked_fill(hidden, 0.0)
    rows = state.expand(b)
    final = rows.replace(
        pending_keys=torch.cat([rows.pending_keys[:, p - old :], new_k], 1),
        pending_values=torch.cat([rows.pending_values[:, p - old :], new_v], 1),
        pending_mask=torch.cat([rows.pending_mask[:, p - old :], new_mask], 1),
    )
    if closes:
        dk = k.shape[-1]
        absorbed = closes * length - p  # of the new tokens
        final = final.replace(
            counts=counts,
            keys=means[..., :dk],
            values=means[..., dk:],
            size=size,
            tokens=rows.tokens + rows.pending_mask.sum(-1) + mask[:, :absorbed].sum(-1),
        )
    return o, final


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    slot_bias: Tensor | None,
    mask: Tensor,
    counts: Tensor,
    keys: Tensor,
    values: Tensor,
    size: Tensor,
    tokens: Tensor,
    pending_k: Tensor,
    pending_v: Tensor,
    pending_mask: Tensor,
    options: str,
    closes: int,
) -> tuple[Call, list[Block], int]:
    """The call that these arguments of the operator make, its blocks, and the threads to share them.

    Autograd is told about none of it, so tensors are detached: threads of a block's own would record otherwise.
    """
    (b, t, h, _), g = q.shape, k.shape[2]
    group = h // g
    parsed = options_of(options)
    grid = Grid(pending_mask.shape[1], t, parsed.chunk_size)
    shared = closes == 0 and keys.shape[0] == 1 and b > 1
    if not shared:
        counts, keys, values, size, tokens = (x.expand(b, *x.shape[1:]) for x in (counts, keys, values, size, tokens))
    pending_k, pending_v, pending_mask = (
        x.detach().expand(b, *x.shape[1:]) for x in (pending_k, pending_v, pending_mask)
    )
    all_valid = bool(mask.all()) and bool(pending_mask.all())
    call = Call(
        q.detach(),
        Tokens(k.detach(), v.detach(), mask, pending_k, pending_v, pending_mask, all_valid),
        beta.detach().to(keys.dtype),
        None if slot_bias is None else slot_bias.detach().to(keys.dtype),
        Dictionary(counts, keys.detach(), values.detach(), size, tokens),
        parsed,
        grid,
        closes,
    )
    chunk = min(parsed.chunk_size, grid.pending + t)
    most = min(parsed.capacity, int(size.max()) + closes * parsed.chunk_size) if size.numel() else 0
    scores = min(chunk * group, reading.TILE) * (most + chunk)
    threads = threads_for(b * h * t * (most + chunk), q.device)
    return call, blocks(b, g, group, scores, threads, shared), threads


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    slot_bias: Tensor | None,
    mask: Tensor,
    counts: Tensor,
    keys: Tensor,
    values: Tensor,
    size: Tensor,
    tokens: Tensor,
    pending_k: Tensor,
    pending_v: Tensor,
    pending_mask: Tensor,
    options: str,
    closes: int,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs `[B, T, H, Dv]` and, where chunks close, what `scan.Walk` holds; the last two only to `differentiate`."""
    arguments = (q, k, v, beta, slot_bias, mask, counts, keys, values, size, tokens, pending_k, pending_v, pending_mask)
    outputs = _outputs(*arguments, options, closes, differentiate)
    if not q.numel() and not v.numel():
        return outputs
    # Statistics stay fp32 whatever surrounds the call.
    with torch.autocast(q.device.type, enabled=False), torch.no_grad():
        call, parts, threads = _call(*arguments, options, closes)
        o, *walk = outputs
        if closes:
            run([partial(scan.forward, call, block, Walk(*walk), o) for block in parts], threads)
        else:
            run([partial(scan.read_only, call, block, o) for block in parts], threads)
    return outputs


def _outputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    slot_bias: Tensor | None,
    mask: Tensor,
    counts: Tensor,
    keys: Tensor,
    values: Tensor,
    size: Tensor,
    tokens: Tensor,
    pending_k: Tensor,
    pending_v: Tensor,
    pending_mask: Tensor,
    options: str,
    closes: int,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs of the right shapes, to be filled."""
    b, t, g, dk = k.shape
    dv = v.shape[-1]
    parsed = options_of(options)
    n, length = parsed.capacity, parsed.chunk_size
    rows = b if closes else 0
    chunks = (pending_mask.shape[1] + t + length - 1) // length
    snapshots = (chunks - 1) // scan.segment_length(parsed) if closes and differentiate else 0
    return (
        v.new_empty(b, t, q.shape[2], dv),
        keys.new_zeros(rows, g, n, dk + dv),
        counts.new_zeros(rows, g, n),
        size.new_zeros(rows, g),
        counts.new_zeros(rows, g, closes * length if differentiate else 0, dtype=torch.int32),
        # Zeros that nobody touches take no memory, and most of a snapshot of a dictionary that still grows is such.
        keys.new_zeros(snapshots, rows, g, n, dk + dv),
    )


def _attention_backward(
    d_o: Tensor,
    d_means: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    slot_bias: Tensor | None,
    mask: Tensor,
    counts: Tensor,
    keys: Tensor,
    values: Tensor,
    size: Tensor,
    tokens: Tensor,
    pending_k: Tensor,
    pending_v: Tensor,
    pending_mask: Tensor,
    slots: Tensor,
    snapshots: Tensor,
    options: str,
    closes: int,
    wants_means: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, beta and slot bias `[B, H]`, pending keys and values, and means `[B or B', G, N, D]`."""
    arguments = (q, k, v, beta, slot_bias, mask, counts, keys, values, size, tokens, pending_k, pending_v, pending_mask)
    outputs = _gradients(d_o, d_means, *arguments, slots, snapshots, options, closes, wants_means)
    if not q.numel() and not v.numel():
        return outputs
    with torch.autocast(q.device.type, enabled=False), torch.no_grad():
        call, parts, threads = _call(*arguments, options, closes)
        grads = Gradients(*outputs)
        if closes:
            walk = Walk(snapshots, counts, size, slots, snapshots)
            jobs = [partial(scan_backward.backward, call, block, walk, d_o, d_means, grads) for block in parts]
        else:
            if wants_means and parts[0].shared:
                # Rows that share a dictionary add to one gradient: one block must have them all.
                parts = list({block.heads.start: block._replace(rows=slice(0, q.shape[0])) for block in parts}.values())
            jobs = [partial(scan_backward.read_only_backward, call, block, d_o, grads) for block in parts]
        run(jobs, threads)
    return outputs


def _gradients(
    d_o: Tensor,
    d_means: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    slot_bias: Tensor | None,
    mask: Tensor,
    counts: Tensor,
    keys: Tensor,
    values: Tensor,
    size: Tensor,
    tokens: Tensor,
    pending_k: Tensor,
    pending_v: Tensor,
    pending_mask: Tensor,
    slots: Tensor,
    snapshots: Tensor,
    options: str,
    closes: int,
    wants_means: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the right shapes, to be filled."""
    (b, _, h, dk), g = q.shape, k.shape[2]
    p = pending_mask.shape[1]
    rows = (b if closes else keys.shape[0]) if wants_means else 0
    return (
        torch.empty_like(q, memory_format=torch.contiguous_format),
        torch.empty_like(k, memory_format=torch.contiguous_format),
        torch.empty_like(v, memory_format=torch.contiguous_format),
        keys.new_zeros(b, h),
        keys.new_zeros(0 if slot_bias is None else b, h),
        keys.new_zeros(b, p, g, dk),
        keys.new_zeros(b, p, g, v.shape[-1]),
        keys.new_zeros(rows, g, keys.shape[2], dk + v.shape[-1]),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what the gradient needs: the inputs, the slots and the snapshots."""
    ctx.set_materialize_grads(False)
    *tensors, ctx.options, ctx.closes, _ = inputs
    ctx.save_for_backward(*tensors, output[4], output[5])


def _differentiate(
    ctx: Any, d_o: Tensor | None, d_means: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of the operator's seventeen arguments."""
    return argument_gradients(ctx, "attention_backward", d_o, d_means)


def _register() -> torch.library.Library:
    """Make operators of the functions above."""
    library = torch.library.Library("ovq", "DEF")
    for name, kernel, shapes in (
        ("attention", _attention, _outputs),
        ("attention_backward", _attention_backward, _gradients),
    ):
        define(library, name, kernel, shapes)
    torch.library.register_autograd("ovq::attention", _differentiate, setup_context=_remember, lib=library)
    torch.library.register_autograd("ovq::attention_backward", no_second_derivative, lib=library)
    return library


_library = _register()  # operators live as long as it
