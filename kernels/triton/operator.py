"""OVQ attention and the batch write in Triton, registered as PyTorch operators: tensors in, tensors out.

`ovq::attention_triton` and its gradient have the arguments of `ovq::attention`; `chunked.attention` puts the state
together around either. Letters: see `calls`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from kernels import chunked
from kernels.options import DictionaryOptions, options_of
from kernels.registration import argument_gradients, define, no_second_derivative
from kernels.state import DictionaryState
from kernels.triton import driver
from kernels.triton.calls import Call, Tensors
from kernels.triton.driver import Gradients, Walk
from kernels.triton.launch import on, widest
from kernels.triton.observing import is_recording


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
) -> tuple[Tensor, DictionaryState | None]:
    """See `kernels.ovq_attention`; arguments are checked and served, `state` may have one row for all."""
    return chunked.attention(
        q, k, v, beta, slot_bias, options, mask, state, output_final_state, operator="attention_triton"
    )


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    slot_bias: Tensor | None,
    mask: Tensor | None,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs `[B, T, H, Dv]`, what `driver.Walk` holds, and `[B, T, H]`, the softmax's denominators.

    Of the latter all but the final dictionary only to `differentiate`.
    """
    arguments = (q, k, v, beta, slot_bias, mask, counts, keys, values, size, tokens, pending_k, pending_v, pending_mask)
    outputs = _empty(*arguments, options, closes, differentiate)
    o, lse = outputs[0], outputs[-1]
    if not q.numel():
        return outputs
    with _launching(q.device):
        call = Call(Tensors(*arguments), options_of(options), closes)
        result = driver.walk(call) if closes else None
        driver.forward(call, result, o, lse if differentiate else None)
        if result is None:
            return outputs
        if differentiate:
            return (o, *result, lse)
        return (o, *result[:3], *outputs[4:])


@contextmanager
def _launching(device: torch.device) -> Iterator[None]:
    """Without autocast or autograd, on the tensors' GPU."""
    with torch.no_grad(), on(device), ExitStack() as stack:
        if device.type != "meta":
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def _empty(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    slot_bias: Tensor | None,
    mask: Tensor | None,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs of the right shapes; those of the walk are placeholders."""
    (b, t, h, dk), g = q.shape, k.shape[2]
    dv = v.shape[-1]
    parsed = options_of(options)
    n, written = parsed.capacity, closes * parsed.chunk_size
    rows = b if closes else 0
    kept = rows if differentiate else 0
    integers = torch.int32
    return (
        v.new_empty(b, t, h, dv),
        keys.new_empty(rows, g, n, dk + dv),
        counts.new_empty(rows, g, n),
        size.new_empty(rows, g),
        counts.new_empty(kept, g, written, dtype=integers),
        counts.new_empty(kept, g, written, dtype=integers),
        counts.new_empty(kept, g, n, dtype=integers),
        keys.new_empty(kept, g, n + written, dk + dv, dtype=widest(q, k, v)),
        keys.new_empty(kept, g, n + written),
        counts.new_empty(kept, g, closes + 1, dtype=integers),
        keys.new_empty(b if differentiate else 0, t, h),
    )


def _attention_backward(
    d_o: Tensor,
    d_means: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    slot_bias: Tensor | None,
    mask: Tensor | None,
    counts: Tensor,
    keys: Tensor,
    values: Tensor,
    size: Tensor,
    tokens: Tensor,
    pending_k: Tensor,
    pending_v: Tensor,
    pending_mask: Tensor,
    o: Tensor,
    final_counts: Tensor,
    codes: Tensor,
    previous: Tensor,
    last: Tensor,
    versions: Tensor,
    log_counts: Tensor,
    sizes: Tensor,
    lse: Tensor,
    options: str,
    closes: int,
    wants_means: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, beta and slot bias `[B, H]`, pending keys and values, and means `[B or B', G, N, D]`."""
    x = Tensors(q, k, v, beta, slot_bias, mask, counts, keys, values, size, tokens, pending_k, pending_v, pending_mask)
    (b, t, h, dk), g = q.shape, k.shape[2]
    p, dv, n = pending_mask.shape[1], v.shape[-1], keys.shape[2]
    rows = (b if closes else keys.shape[0]) if wants_means else 0
    if not q.numel():
        return (
            torch.zeros_like(q),
            torch.zeros_like(k),
            torch.zeros_like(v),
            keys.new_zeros(b, h),
            keys.new_zeros(0 if slot_bias is None else b, h),
            keys.new_zeros(b, p, g, dk),
            keys.new_zeros(b, p, g, dv),
            keys.new_zeros(rows, g, n, dk + dv) if d_means is None else d_means.clone(),
        )
    with _launching(q.device):
        call = Call(x, options_of(options), closes)
        result = Walk(d_o, final_counts, size, codes, previous, last, versions, log_counts, sizes) if closes else None
        grads = Gradients(
            torch.empty_like(q, memory_format=torch.contiguous_format),
            torch.empty_like(k, memory_format=torch.contiguous_format),
            torch.empty_like(v, memory_format=torch.contiguous_format),
            keys.new_empty(b, t, h),
            keys.new_empty(0 if slot_bias is None else b, t, h),
            keys.new_empty(b, g, call.s, dk + dv),
            keys.new_empty(rows, g, n, dk + dv),
        )
        driver.backward(call, result, d_o, o, lse, d_means, grads)
        pending = grads.tokens[:, :, :p].transpose(1, 2)
        return (
            grads.q,
            grads.k,
            grads.v,
            grads.beta.sum(1),
            grads.slot_bias.sum(1),
            pending[..., :dk].contiguous(),
            pending[..., dk:].contiguous(),
            grads.means,
        )


def _gradients(
    d_o: Tensor,
    d_means: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    slot_bias: Tensor | None,
    mask: Tensor | None,
    counts: Tensor,
    keys: Tensor,
    values: Tensor,
    size: Tensor,
    tokens: Tensor,
    pending_k: Tensor,
    pending_v: Tensor,
    pending_mask: Tensor,
    o: Tensor,
    final_counts: Tensor,
    codes: Tensor,
    previous: Tensor,
    last: Tensor,
    versions: Tensor,
    log_counts: Tensor,
    sizes: Tensor,
    lse: Tensor,
    options: str,
    closes: int,
    wants_means: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the right shapes."""
    (b, _, h, dk), g = q.shape, k.shape[2]
    p, dv = pending_mask.shape[1], v.shape[-1]
    rows = (b if closes else keys.shape[0]) if wants_means else 0
    return (
        torch.empty_like(q, memory_format=torch.contiguous_format),
        torch.empty_like(k, memory_format=torch.contiguous_format),
        torch.empty_like(v, memory_format=torch.contiguous_format),
        keys.new_empty(b, h),
        keys.new_empty(0 if slot_bias is None else b, h),
        keys.new_empty(b, p, g, dk),
        keys.new_empty(b, p, g, dv),
        keys.new_empty(rows, g, keys.shape[2], dk + dv),
    )


def _recorded(kernel: Callable[..., Any], shapes: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function for calls without data: it gives shapes, and where launches are recorded it records them too."""
    return lambda *arguments: (kernel if is_recording() else shapes)(*arguments)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what the gradient needs: the inputs, the outputs, and what the scan left."""
    ctx.set_materialize_grads(False)
    *tensors, ctx.options, ctx.closes, _ = inputs
    ctx.save_for_backward(*tensors, output[0], output[2], *output[4:])


def _differentiate(
    ctx: Any, d_o: Tensor | None, d_means: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of the operator's seventeen arguments."""
    return argument_gradients(ctx, "attention_triton_backward", d_o, d_means)


def _register() -> torch.library.Library:
    """Make operators of the functions above, as `chunked` does."""
    library = torch.library.Library("ovq", "FRAGMENT")
    for name, kernel, shapes in (
        ("attention_triton", _attention, _empty),
        ("attention_triton_backward", _attention_backward, _gradients),
    ):
        define(library, name, kernel, _recorded(kernel, shapes))
    torch.library.register_autograd("ovq::attention_triton", _differentiate, setup_context=_remember, lib=library)
    torch.library.register_autograd("ovq::attention_triton_backward", no_second_derivative, lib=library)
    return library


_library = _register()  # operators live as long as it
