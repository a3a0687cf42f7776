"""OVQ attention in C++, registered as the PyTorch operator `ovq::native`. Letters: see `kernels.chunked`."""

import math

import torch
from torch import Tensor

from kernels import chunked
from kernels.growth import target_size
from kernels.native.library import build, is_loaded
from kernels.options import LEARNING_RATES, READ_OUTS
from kernels.registration import Operator, register
from kernels.scan import ScanResult, segment_length
from kernels.schema import Arguments

NAME = "native"


def _forward(x: Arguments, full_chunks: int, differentiate: bool) -> ScanResult:
    result = chunked.outputs(x, full_chunks, differentiate)
    if not x.q.numel():
        return result
    if not is_loaded():
        build()
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        exact = x._replace(
            q=_rows(x.q),
            k=_rows(x.k),
            v=_rows(x.v),
            beta=x.beta.float().contiguous(),
            slot_bias=None if x.slot_bias is None else x.slot_bias.float().contiguous(),
        )
        o = result.o if result.o.dtype == torch.float32 else torch.empty_like(result.o, dtype=torch.float32)
        _call(exact, full_chunks, result._replace(o=o))
        if o is not result.o:
            result.o.copy_(o)
    return result


def _rows(x: Tensor) -> Tensor:
    """In fp32, features side by side; the layout may be any otherwise."""
    x = x.detach().float()
    return x if x.stride(-1) == 1 else x.contiguous()


def _call(x: Arguments, full_chunks: int, result: ScanResult) -> None:
    options, state = x.options, x.state.detach().expand(x.q.shape[0])
    length, novelty = options.chunk_size, options.growth == "novelty"
    if full_chunks:
        targets = target_size(_tokens_after(x, full_chunks), options)
    else:
        targets = state.tokens.new_empty(x.q.shape[0], 0)
    tensors = (state.counts, state.keys, state.values, state.size)
    torch.ops.ovq_native.forward(
        *x[:6],
        [*tensors, state.pending_keys, state.pending_values, state.pending_mask],
        targets,
        [result.o, result.means, result.counts, result.size, result.slots, result.snapshots],
        [
            *(length, full_chunks, READ_OUTS.index(options.read_out), LEARNING_RATES.index(options.learning_rate)),
            *(options.assignment == "all", options.query_norm, segment_length(options)),
        ],
        [options.rate, options.novelty_threshold if novelty else math.inf],
    )


def _tokens_after(x: Arguments, full_chunks: int) -> Tensor:
    """Valid tokens that have been seen once each chunk is written, `[B, full_chunks]`."""
    state, b, length = x.state.expand(x.q.shape[0]), x.q.shape[0], x.options.chunk_size
    mask = torch.ones(x.q.shape[:2], dtype=torch.bool) if x.mask is None else x.mask
    valid = torch.cat([state.pending_mask, mask], 1)[:, : full_chunks * length]
    return state.tokens[:, None] + valid.view(b, full_chunks, length).sum(-1).cumsum(-1)


register(Operator(NAME, ScanResult, ("slots", "united", "snapshots"), _forward, chunked.outputs, chunked.backward))
