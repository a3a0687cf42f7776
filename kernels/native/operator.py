"""OVQ attention in C++, registered as the PyTorch operator `ovq::native`. Letters: see `kernels.chunked`."""

import torch
from torch import Tensor
from torch.nn import Parameter

from kernels import chunked
from kernels.growth import target_size
from kernels.native.calls import call_arguments
from kernels.native.library import build, is_loaded
from kernels.registration import Operator, has_tangent, register
from kernels.scan import ScanResult
from kernels.schema import Arguments, Gradients
from kernels.state import DictionaryState

NAME = "native"
_NO_CODES = torch.empty(0, dtype=torch.int32)


def attention(x: Arguments, output_final_state: bool) -> tuple[Tensor, DictionaryState | None]:
    """See `kernels.ovq_attention`."""
    if _is_step(x):
        return _step(x, output_final_state)
    return chunked.attention(x, output_final_state, NAME)


def _is_step(x: Arguments) -> bool:
    """Whether a call only reads and waits, as decoding token by token mostly does, and nobody but us looks on.

    Then neither autograd nor the compiler needs an operator, whose way through PyTorch takes longer than the work.
    """
    if x.mask is not None or x.state.pending + x.q.shape[1] >= x.options.chunk_size or not x.q.numel():
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    tensors = [x.q, x.k, x.v, x.beta, x.state.keys, x.state.values, x.state.pending_keys, x.state.pending_values]
    tensors += [] if x.slot_bias is None else [x.slot_bias]
    if has_tangent(*tensors) or (torch.is_grad_enabled() and any(y.requires_grad for y in tensors)):
        return False
    return all(type(y) in (Tensor, Parameter) and y.dtype == torch.float32 and y.is_cpu for y in tensors)


@torch.no_grad()
def _step(x: Arguments, output_final_state: bool) -> tuple[Tensor, DictionaryState | None]:
    if not is_loaded():
        build()
    o, none = torch.empty((*x.q.shape[:3], x.v.shape[-1])), x.state.keys.new_empty(0)
    integers, codes = x.state.tokens.new_empty(0), _NO_CODES
    call = call_arguments(x, 0)
    torch.ops.ovq_native.forward(*call, integers, [o, none, integers, integers, codes, none])
    if not output_final_state:
        return o, None
    rows = x.state.expand(x.q.shape[0])
    keys, values, mask = torch.ops.ovq_native.append(call[1], call[2], *call[6][4:])
    return o, rows.replace(pending_keys=keys, pending_values=values, pending_mask=mask)


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
