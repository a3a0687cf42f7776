"""The one function, and the choice of its implementation."""

import torch
from torch import Tensor

from kernels import chunked, reference
from kernels.native import library
from kernels.native.step import next_step
from kernels.native.support import unserved as unserved_by_native
from kernels.options import DictionaryOptions, check_name
from kernels.schema import Arguments
from kernels.state import DictionaryState, statistics_dtype
from kernels.triton.support import on_gpu
from kernels.triton.support import unserved as unserved_by_triton
from kernels.writing import check_fits

IMPLEMENTATIONS = ("auto", "reference", "chunked", "native", "triton")

library.load()


def ovq_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | float,
    options: DictionaryOptions,
    *,
    mask: Tensor | None = None,
    initial_state: DictionaryState | None = None,
    slot_bias: Tensor | None = None,
    output_final_state: bool = False,
    implementation: str = "auto",
) -> tuple[Tensor, DictionaryState | None]:
    """Online vector-quantized attention (arXiv 2602.03922): softmax over a learned dictionary and a chunk.

    A query at position s sees the slots as they stood when its chunk began, with logit `beta q.mu_i + log c_i`, and
    the tokens of its chunk up to and including s, with logit `beta q.k_j`. When a chunk is full its tokens update the
    dictionary. (`gmr` subtracts `beta |mu|^2 / 2` from the logit of a slot and, as |k| = 1, beta / 2 from a token's.)

    k, v and the state may have fewer heads: with G of them, query head h reads the dictionary and the tokens of head
    h // (H / G), which are not copied.

    Args:
        q: `[B, T, H, Dk]`, normalised here unless `options.query_norm` is False.
        k: `[B, T, G, Dk]`, normalised here; H is a multiple of G.
        v: `[B, T, G, Dv]`.
        beta: inverse temperature, `[H]`, or a number for all heads. Meant to be positive, which is not checked: zero
            sees all alike, a negative one prefers what is unlike the query, and NaN makes all outputs NaN.
        options: of the dictionary.
        mask: `[B, T]` bool, True for valid tokens. A masked token is neither read nor written, and its output is zero.
        initial_state: where to go on from; of B rows, or of one row that all rows start from.
        slot_bias: `[H]`, added to every slot's logit beside `log c_i`, at every chunk, and not to those of the chunk's
            own tokens: `log(w / t)` makes a dictionary of t tokens count for w. Minus infinity hides the dictionary.
        output_final_state: whether to return the state after the last token.
        implementation: a name in `IMPLEMENTATIONS`; `auto` chooses by device.

    Returns:
        Output `[B, T, H, Dv]` in the dtype of v, and the final state (None unless asked for).

    Raises:
        ValueError: where names, shapes or dtypes do not fit together.

    Masked positions count on the chunk grid, so that all rows close their chunks together; growth counts valid tokens.
    Gradients flow to q, k, v, beta, slot_bias and to the means and pending tokens of the initial state, through the
    read-out and through the means of all later chunks; the choice of slots carries none.
    """
    # Compiled code would be compiled anew whenever there are more states that steps have made.
    if initial_state is not None and implementation in ("auto", "native") and not torch.compiler.is_compiling():
        x = Arguments(q, k, v, beta, slot_bias, mask, initial_state, options)  # type: ignore[arg-type]
        if (result := next_step(x, output_final_state)) is not None:
            return result
    check_name("implementation", implementation, IMPLEMENTATIONS)
    if not isinstance(beta, Tensor):
        beta = torch.full(q.shape[2:3], float(beta), device=q.device)
    b, g, dk, dv = _check(q, k, v, beta, slot_bias, mask)
    implementation = choose(implementation, q, k, v, options)
    dtype = statistics_dtype(q.dtype, k.dtype, v.dtype)
    if initial_state is None:
        initial_state = DictionaryState.empty((b, g, options.capacity, dk, dv), dtype, q.device)
    check_fits(initial_state, options, g, dk, dv)
    if initial_state.keys.dtype != dtype:
        raise ValueError(f"the state's means are {initial_state.keys.dtype}, these inputs need {dtype}")
    if initial_state.pending >= options.chunk_size:
        raise ValueError(f"the state has {initial_state.pending} pending tokens, a chunk only {options.chunk_size}")
    if initial_state.batch not in (1, b):
        raise ValueError(
            f"the state has {initial_state.batch} rows, the tokens {b}: they must be equal, or the state's 1"
        )
    x = Arguments(q, k, v, beta, slot_bias, mask, initial_state, options)
    if implementation == "triton":
        from kernels.triton import operator

        return chunked.attention(x, output_final_state, operator.NAME)
    if implementation == "native":
        from kernels.native import operator as native_operator

        return native_operator.attention(x, output_final_state)
    if implementation == "chunked":
        return chunked.attention(x, output_final_state)
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, beta = (y.to(dtype) for y in (q, k, v, beta))
        bias = None if slot_bias is None else slot_bias.to(dtype)
        o, final = reference.attention(Arguments(q, k, v, beta, bias, mask, initial_state.expand(b), options))
    return o.to(x.v.dtype), final if output_final_state else None


def choose(implementation: str, q: Tensor, k: Tensor, v: Tensor, options: DictionaryOptions) -> str:
    """The implementation that serves a call.

    `auto` takes Triton's kernels on a GPU and native code on a CPU, wherever they serve it and the latter is compiled.

    Raises:
        ValueError: if `triton` or `native` is asked for and cannot.
    """
    if implementation in ("chunked", "reference"):
        return implementation
    name = implementation
    if implementation == "auto":
        name = "triton" if on_gpu(q) else "native"
        if name == "native" and not library.is_loaded():
            return "chunked"
    reason = (unserved_by_triton if name == "triton" else unserved_by_native)(q, k, v, options)
    if reason is None:
        return name
    if implementation == name:
        raise ValueError(f"implementation {name!r} cannot serve this call: {reason}; 'chunked' and 'reference' can")
    return "chunked"


def _check(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, slot_bias: Tensor | None, mask: Tensor | None
) -> tuple[int, int, int, int]:
    """B, G, Dk, Dv, or a ValueError that says which shape does not fit."""
    four = q.dim() == k.dim() == v.dim() == 4
    if not four or k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3] or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            "expected q [B, T, H, Dk], k [B, T, G, Dk] and v [B, T, G, Dv], got "
            f"{list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        )
    b, t, g, dk = k.shape
    h = q.shape[2]
    if not h or not g or not dk or not v.shape[-1]:
        raise ValueError(
            "heads and their features must be at least one, got q, k and v of "
            f"{list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        )
    if h % g:
        raise ValueError(f"q has {h} heads, k and v have {g}: the query heads must be a multiple of the others")
    if beta.shape != (h,):
        raise ValueError(f"beta must have shape [{h}], one inverse temperature per head, got {list(beta.shape)}")
    if slot_bias is not None and (slot_bias.shape != (h,) or not slot_bias.is_floating_point()):
        raise ValueError(
            f"slot_bias must be floating of shape [{h}], one number per head of q, "
            f"got {slot_bias.dtype} {list(slot_bias.shape)}"
        )
    if mask is not None and (mask.shape != (b, t) or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool [{b}, {t}], got {mask.dtype} {list(mask.shape)}")
    if not all(x.is_floating_point() for x in (q, k, v, beta)):
        raise ValueError(f"q, k, v and beta must be floating, got {q.dtype}, {k.dtype}, {v.dtype}, {beta.dtype}")
    return b, g, dk, v.shape[-1]
