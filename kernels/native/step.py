"""One token of every row in native code, as decoding takes them: it joins its open chunk and reads."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Parameter

from kernels.native.calls import sizes_of
from kernels.native.library import build, is_loaded
from kernels.options import DictionaryOptions
from kernels.registration import has_tangent
from kernels.schema import Arguments
from kernels.state import DictionaryState

Result = tuple[Tensor, DictionaryState | None]


@dataclass(eq=False)
class OpenChunk:
    """Places for the tokens of a chunk, so that one is added without copying those before it.

    Every state that a step returned shows the first of them. Whoever goes on from such a state takes the next place; it
    was taken before where two go on from the same state, and then the second gets places of its own.

    Args:
        places: keys `[B, L, G, Dk]`, normalised, values `[B, L, G, Dv]`, and `[B, L]` bool, True for a valid token.
        taken: how many places are.
        options: of the dictionary, and
        shapes: of q, k, v and beta: what was found to fit the state.
    """

    places: list[Tensor]
    taken: int
    options: DictionaryOptions
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, x: Arguments) -> OpenChunk:
        """A copy of the open chunk of a call's state."""
        places = []
        for pending in (x.state.pending_keys, x.state.pending_values, x.state.pending_mask):
            room = pending.new_empty(x.q.shape[0], x.options.chunk_size, *pending.shape[2:])
            room[:, : x.state.pending] = pending
            places.append(room)
        return cls(places, x.state.pending, x.options, _shapes(x))


_OPEN: WeakKeyDictionary[DictionaryState, OpenChunk] = WeakKeyDictionary()  # of states that a step returned


def next_step(x: Arguments, output_final_state: bool) -> Result | None:
    """What `step` returns where a step made the state and all fits as it did then, so that nothing need be checked."""
    chunk = _OPEN.get(x.state)
    if chunk is None or chunk.options is not x.options or not isinstance(x.beta, Tensor) or chunk.shapes != _shapes(x):
        return None
    if x.mask is not None or x.state.pending + 1 >= x.options.chunk_size:
        return None
    if x.slot_bias is not None and (x.slot_bias.shape != x.beta.shape or not _is_plain(x.slot_bias)):
        return None
    return _step(x, chunk, output_final_state) if _is_plain(x.q, x.k, x.v, x.beta) else None


def is_step(x: Arguments) -> bool:
    """Whether a call reads one valid token of every row and closes no chunk, and nobody but us looks on.

    Then neither autograd nor the compiler needs an operator, whose way through PyTorch takes longer than the work.
    """
    state = x.state
    if x.q.shape[1] != 1 or x.mask is not None or state.pending + 1 >= x.options.chunk_size or not x.q.numel():
        return False
    bias = [] if x.slot_bias is None else [x.slot_bias]
    means = (state.keys, state.values, state.pending_keys, state.pending_values)
    return _is_plain(x.q, x.k, x.v, x.beta, *bias, *means)


def step(x: Arguments, output_final_state: bool) -> Result:
    """Read one token of every row, and add it to the open chunk; see `kernels.ovq_attention`."""
    if not is_loaded():
        build()
    state = x.state.expand(x.q.shape[0])
    if state not in _OPEN:  # layouts may be any
        counts, size = (y if y[:1].is_contiguous() else y.contiguous() for y in (state.counts, state.size))
        state = state.replace(counts=counts, size=size, keys=_rows(state.keys), values=_rows(state.values))
    x = x._replace(state=state)
    return _step(x, OpenChunk.of(x), output_final_state)


@torch.no_grad()
def _step(x: Arguments, chunk: OpenChunk, output_final_state: bool) -> Result:
    state, position = x.state, x.state.pending
    if chunk.taken != position:
        chunk = OpenChunk.of(x)
    chunk.taken = position + 1
    o, *pending = torch.ops.ovq_native.step(
        *(_rows(x.q), _rows(x.k), _rows(x.v), x.beta.contiguous(), x.slot_bias),
        *([state.counts, state.keys, state.values, state.size], chunk.places, position, sizes_of(x.options, 0)),
    )
    if not output_final_state:
        return o, None
    final = DictionaryState(
        counts=state.counts,
        keys=state.keys,
        values=state.values,
        size=state.size,
        tokens=state.tokens,
        pending_keys=pending[0],
        pending_values=pending[1],
        pending_mask=pending[2],
    )
    _OPEN[final] = chunk
    return o, final


def _shapes(x: Arguments) -> tuple[torch.Size, ...]:
    return x.q.shape, x.k.shape, x.v.shape, x.beta.shape


def _is_plain(*tensors: Tensor) -> bool:
    """Whether tensors are just numbers on a CPU, in fp32, and neither gradients nor transformations follow them."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    return not has_tangent(*tensors) and all(
        type(x) in (Tensor, Parameter) and x.dtype == torch.float32 and x.is_cpu for x in tensors
    )


def _rows(x: Tensor) -> Tensor:
    """Features side by side; the layout may be any otherwise."""
    return x if x.stride(-1) == 1 else x.contiguous()
