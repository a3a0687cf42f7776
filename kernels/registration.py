"""What every implementation of OVQ attention needs to be a PyTorch operator: its definition and its gradient.

Letters: see `chunked`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

UNSUPPORTED = (
    "this implementation of OVQ attention has first derivatives in reverse mode only, no second derivative, no "
    "forward-mode derivative, and no torch.func transform (vmap, jvp, grad, ...); implementation='reference' has all "
    "of them but vmap"
)


def argument_gradients(
    ctx: Any, operator: str, d_o: Tensor | None, d_means: Tensor | None
) -> tuple[Tensor | None, ...]:
    """What the registered operator `operator` gives for what `ctx` saved, of which the first fourteen are arguments."""
    refuse_tangents(d_o, d_means)
    saved = ctx.saved_tensors  # once: under activation checkpointing each reading unpacks, which may happen only once
    arguments, kept = saved[:14], saved[14:]
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
    raise NotImplementedError(UNSUPPORTED)


def refuse_transforms(*tensors: Tensor | None) -> None:
    """Raise a NotImplementedError if an argument carries a tangent, or is inside a `torch.func` transform.

    PyTorch would drop the tangent without a word, and loop or fail in its own terms under the others.
    """
    # torch.compile can trace the first question only, and its answer is nearly always no.
    if torch._C._are_functorch_transforms_active() and any(
        x is not None and torch._C._functorch.is_functorch_wrapped_tensor(x) for x in tensors
    ):
        raise NotImplementedError(UNSUPPORTED)
    refuse_tangents(*tensors)


def refuse_tangents(*tensors: Tensor | None) -> None:
    """Raise a NotImplementedError if one of the tensors carries the tangent of a forward-mode derivative."""
    if has_tangent(*tensors):
        raise NotImplementedError(UNSUPPORTED)


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors carries the tangent of a forward-mode derivative."""
    if forward_ad._current_level < 0:  # outside `dual_level`, which is nearly always
        return False
    return any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)


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
