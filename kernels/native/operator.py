"""OVQ attention in C++, registered as the PyTorch operator `ovq::native`. Letters: see `kernels.chunked`."""

import torch
from torch import Tensor

from kernels import chunked
from kernels.growth import target_size
from kernels.native.calls import call_arguments
from kernels.native.library import build, is_loaded
from kernels.native.step import is_step, step
from kernels.registration import Operator, register
from kernels.scan import ScanResult
from kernels.schema import Arguments, Gradients
from kernels.state import DictionaryState

NAME = "native"


def attention(x: Arguments, output_final_state: bool) -> tuple[Tensor, DictionaryState | None]:
    """See `kernels.ovq_attention`."""
    if is_step(x):
        return step(x, output_final_state)
    return chunked.attention(x, output_final_state, NAME)


def _forward(x: Arguments, full_chunks: int, differentiate: bool) -> ScanResult:
    result = chunked.outputs(x, full_chunks, differentiate)
    if not x.q.numel():
        return result
    if not is_loaded():
        build()
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        exact = result._replace(o=result.o.float())  # a copy only where outputs are narrow
        targets = x.state.tokens.new_empty(0)
        if full_chunks:
            targets = target_size(_tokens_after(x, full_chunks), x.options)
        outputs = [exact.o, exact.means, exact.counts, exact.size, exact.slots, exact.snapshots]
        torch.ops.ovq_native.forward(*call_arguments(x, full_chunks), targets, outputs)
        if exact.o is not result.o:
            result.o.copy_(exact.o)
    return result


def _backward(
    x: Arguments, full_chunks: int, result: ScanResult, d_o: Tensor, d_means: Tensor | None, wants_means: bool
) -> Gradients:
    grads = Gradients.empty(x, full_chunks, wants_means)
    if not x.q.numel():
        return grads
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        exact = Gradients._make(tensor.float() for tensor in grads)
        d_means = None if d_means is None else d_means.contiguous()
        arguments = (*call_arguments(x, full_chunks), result.slots, result.snapshots, d_o.float().contiguous(), d_means)
        torch.ops.ovq_native.backward(*arguments, list(exact))
        for tensor, found in zip(grads, exact, strict=True):
            if tensor is not found:
                tensor.copy_(found)
    return grads


def _tokens_after(x: Arguments, full_chunks: int) -> Tensor:
    """Valid tokens that have been seen once each chunk is written, `[B, full_chunks]`."""
    state, b, length = x.state.expand(x.q.shape[0]), x.q.shape[0], x.options.chunk_size
    mask = torch.ones(x.q.shape[:2], dtype=torch.bool) if x.mask is None else x.mask
    valid = torch.cat([state.pending_mask, mask], 1)[:, : full_chunks * length]
    return state.tokens[:, None] + valid.view(b, full_chunks, length).sum(-1).cumsum(-1)


register(Operator(NAME, ScanResult, ("slots", "united", "snapshots"), _forward, chunked.outputs, _backward))
