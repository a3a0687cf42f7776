"""What every implementation of OVQ attention needs to be a PyTorch operator: its definition and its gradient.

Letters: see `chunked`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from kernels.schema import ARGUMENTS, Arguments, Gradients

UNSUPPORTED = (
    "this implementation of OVQ attention has first derivatives in reverse mode only, no second derivative, no "
    "forward-mode derivative, and no torch.func transform (vmap, jvp, grad, ...); implementation='reference' has all "
    "of them but vmap"
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


class Operator(NamedTuple):
    """An implementation of OVQ attention, to be made `ovq::name` and, for its gradient, `ovq::name_backward`.

    Args:
        name: of the operator.
        outputs: what `forward` gives, a named tuple of tensors that begins with o, means, counts and size.
        saved: names of the outputs that the gradient needs.
        forward: takes the arguments, the number of full chunks, and whether a gradient will be asked for.
        shapes: the same without content.
        backward: takes the arguments, the number of full chunks, the outputs (None for those that are not saved), the
            gradients of o and means (None if there is none of the latter), and whether those of the state's means are
            wanted.
        records: says whether calls without data are to be made all the same, so that their launches are recorded.
    """

    name: str
    outputs: Any
    saved: Sequence[str]
    forward: Callable[..., tuple[Tensor, ...]]
    shapes: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., Gradients]
    records: Callable[[], bool] = lambda: False


_library = torch.library.Library("ovq", "DEF")  # operators live as long as it


def register(operator: Operator) -> None:
    """Make PyTorch operators of an implementation: flat lists in, flat lists out."""
    name, n = operator.name, len(ARGUMENTS)

    def forward(*flat: Any) -> tuple[Tensor, ...]:
        return tuple(operator.forward(Arguments.unpack(flat[:n]), *flat[n:]))

    def shapes(*flat: Any) -> tuple[Tensor, ...]:
        return forward(*flat) if operator.records() else tuple(operator.shapes(Arguments.unpack(flat[:n]), *flat[n:]))

    def backward(*flat: Any) -> tuple[Tensor, ...]:
        full_chunks, *saved, d_o, d_means, wants_means = flat[n:]
        none = dict.fromkeys(operator.outputs._fields)
        outputs = operator.outputs(**none | dict(zip(operator.saved, saved, strict=True)))
        return tuple(operator.backward(Arguments.unpack(flat[:n]), full_chunks, outputs, d_o, d_means, wants_means))

    def backward_shapes(*flat: Any) -> tuple[Tensor, ...]:
        if operator.records():
            return backward(*flat)
        return tuple(Gradients.empty(Arguments.unpack(flat[:n]), flat[n], flat[-1]))

    def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        *tensors, ctx.options, ctx.full_chunks, _ = inputs
        outputs = operator.outputs(*output)
        ctx.save_for_backward(*tensors, *(getattr(outputs, name) for name in operator.saved))

    def differentiate(
        ctx: Any, d_o: Tensor | None, d_means: Tensor | None, *_: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        return _argument_gradients(ctx, getattr(torch.ops.ovq, f"{name}_backward"), d_o, d_means)

    declared = {**ARGUMENTS, "full_chunks": "SymInt"}
    _define(name, declared | {"differentiate": "bool"}, len(operator.outputs._fields), forward, shapes)
    declared |= dict.fromkeys((f"saved_{name}" for name in operator.saved), "Tensor")
    declared |= {"d_o": "Tensor", "d_means": "Tensor?", "wants_means": "bool"}
    _define(f"{name}_backward", declared, len(Gradients._fields), backward, backward_shapes)
    torch.library.register_autograd(f"ovq::{name}", differentiate, setup_context=remember, lib=_library)
    torch.library.register_autograd(f"ovq::{name}_backward", no_second_derivative, lib=_library)


def _define(
    name: str, arguments: dict[str, str], outputs: int, kernel: Callable[..., Any], shapes: Callable[..., Any]
) -> None:
    """Make `ovq::name` of a function, and of one that gives the shapes of what it returns.

    By hand, because `torch.library.custom_op` imports torch's compiler, two seconds and 180 MB, when it is first
    called.
    """
    schema = ", ".join(f"{kind} {argument}" for argument, kind in arguments.items())
    tensors = ", ".join(["Tensor"] * outputs)
    _library.define(f"{name}({schema}) -> ({tensors})", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ovq::{name}", shapes, lib=_library)


def _argument_gradients(
    ctx: Any, backward: Callable[..., Any], d_o: Tensor | None, d_means: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of the operator's arguments, from what it saved and the operator of its gradient."""
    refuse_tangents(d_o, d_means)
    saved = ctx.saved_tensors  # once: under activation checkpointing each reading unpacks, which may happen only once
    flat, kept = (*saved[: len(ARGUMENTS) - 1], ctx.options), saved[len(ARGUMENTS) - 1 :]
    x = Arguments.unpack(flat)
    wanted = dict(zip(ARGUMENTS, ctx.needs_input_grad, strict=False))
    wants_means = wanted["keys"] or wanted["values"]
    if d_o is None:
        d_o = x.v.new_zeros(*x.q.shape[:3], x.v.shape[-1])
    d_means = d_means if ctx.full_chunks else None
    found = Gradients(*backward(*flat, ctx.full_chunks, *kept, d_o, d_means, wants_means))
    by_name: dict[str, Tensor] = {
        "q": found.q,
        "k": found.k,
        "v": found.v,
        "beta": found.beta.sum(0).to(x.beta.dtype),
        "pending_keys": _to_rows(found.pending_keys, x.state.batch),
        "pending_values": _to_rows(found.pending_values, x.state.batch),
    }
    if x.slot_bias is not None:
        by_name["slot_bias"] = found.slot_bias.sum(0).to(x.slot_bias.dtype)
    if wants_means:
        means, dk = _to_rows(found.means, x.state.batch), x.q.shape[-1]
        by_name |= {"keys": means[..., :dk], "values": means[..., dk:]}
    return (*map(by_name.get, ARGUMENTS), None, None)
