"""What every implementation of OVQ attention needs to be a PyTorch operator: its definition and its gradient.

Letters: see `chunked`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def argument_gradients(
    ctx: Any, operator: str, d_o: Tensor | None, d_means: Tensor | None
) -> tuple[Tensor | None, ...]:
    """What the registered operator `operator` gives for what `ctx` saved, of which the first fourteen are arguments."""
    arguments, kept = ctx.saved_tensors[:14], ctx.saved_tensors[14:]
    q, _, v, beta, slot_bias = arguments[:5]
    keys, pending_k = arguments[7], arguments[11]
    wants_means = ctx.needs_input_grad[7] or ctx.needs_input_grad[8]
    if d_o is None:
        d_o = v.new_zeros(*q.shape[:3], v.shape[-1])
    dk = q.shape[-1]
    d_q, d_k, d_v, d_beta, d_slot_bias, d_pending_k, d_pending_v, d_initial = getattr(torch.ops.ovq, operator)(
        d_o,
        d_means if ctx.closes else None,
        *arguments,
        *kept,
        ctx.options,
        ctx.closes,
        wants_means,
    )
    d_initial = _to_rows(d_initial, keys.shape[0]) if wants_means else None
    d_pending_k, d_pending_v = (_to_rows(x, pending_k.shape[0]) for x in (d_pending_k, d_pending_v))
    none = (None,) * 2
    return (
        d_q,
        d_k,
        d_v,
        d_beta.sum(0).to(beta.dtype),
        None if slot_bias is None else d_slot_bias.sum(0).to(slot_bias.dtype),
        *none,  # mask, counts
        None if d_initial is None else d_initial[..., :dk],
        None if d_initial is None else d_initial[..., dk:],
        *none,  # size, tokens
        d_pending_k,
        d_pending_v,
        *none,  # pending mask, options
        *none,  # closes, differentiate
    )


def no_second_derivative(ctx: Any, *gradients: Tensor | None) -> None:
    """Say that there is none."""
    raise NotImplementedError(
        "this implementation of OVQ attention has no second derivative; implementation='reference' has"
    )


def _to_rows(gradient: Tensor, rows: int) -> Tensor:
    """Sum over rows if the input had one that all shared."""
    return gradient if gradient.shape[0] == rows else gradient.sum(0, keepdim=True)


def define(library: torch.library.Library, name: str, kernel: Callable[..., Any], shapes: Callable[..., Any]) -> None:
    """Make `ovq::name` of a function, and of one that gives the shapes of what it returns.

    By hand, because `torch.library.custom_op` imports torch's compiler, two seconds and 180 MB, when it is first
    called.
    """
    schema = name + torch.library.infer_schema(kernel, mutates_args=())
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ovq::{name}", shapes, lib=library)
