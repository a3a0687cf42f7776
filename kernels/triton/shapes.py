"""Calls of the operator described by a few numbers: to compile for, to hold against each other, to time.

A call drawn on the `meta` device has no data; its launches can be recorded all the same, so what is compiled ahead is
what the call would launch. Letters: see `kernels.attention`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kernels.attention import ovq_attention
from kernels.options import DictionaryOptions
from kernels.state import DictionaryState
from kernels.writing import update

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Shape:
    """A call.

    Attributes:
        kind: `forward`; `train` (forward and backward); `resume` (the same from a part-filled dictionary and an open
            chunk on, with masked tokens, and gradients of initial and final state); `decode` (one token); `shared`
            (rows that read one dictionary, forward and backward); `write` (a batch into one dictionary).
        dtype: a name in `DTYPES`.
        head: D.
        chunk: L.
        choices: further options of the dictionary.
        capacity: N.
        rows: B.
        tokens: T; None for as many as the kind is usually called with.
        heads: G.
        group: H / G.
        biased: whether there is a slot bias.
        masked: whether some tokens are masked.
    """

    kind: str
    dtype: str
    head: int
    chunk: int
    choices: tuple[tuple[str, Any], ...] = ()
    capacity: int = 1024
    rows: int | None = None
    tokens: int | None = None
    heads: int = 4
    group: int = 1
    biased: bool = False
    masked: bool = False

    @property
    def options(self) -> DictionaryOptions:
        """Of the dictionary."""
        return DictionaryOptions(capacity=self.capacity, chunk_size=self.chunk, **dict(self.choices))

    @property
    def one(self) -> bool:
        """Whether all rows have one dictionary."""
        return self.kind in ("shared", "write")

    @property
    def sizes(self) -> tuple[int, int]:
        """B and T."""
        usual = (128, 16) if self.one else (2, 1 if self.kind == "decode" else 16 * self.chunk)
        return self.rows or usual[0], self.tokens or usual[1]

    @property
    def pending(self) -> int:
        """Tokens of the open chunk that the call goes on in."""
        return min(17, self.chunk // 2) if self.kind in ("resume", "decode") else 0

    @property
    def words(self) -> str:
        """All of it in words."""
        rows, tokens = self.sizes
        more = [f"{name}={value}" for name, value in self.choices]
        more += [f"group={self.group}"] * (self.group > 1) + ["biased"] * self.biased + ["masked"] * self.masked
        size = f"D={self.head} L={self.chunk} N={self.capacity} B={rows} T={tokens} G={self.heads}"
        return " ".join([self.kind, self.dtype, size, *more])


@dataclass(frozen=True)
class Inputs:
    """The tensors of a call; see `ovq_attention`. `weight` is the gradient of the outputs."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    slot_bias: Tensor | None
    mask: Tensor | None
    state: DictionaryState
    weight: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """With floating-point numbers of another type."""
        names = ("q", "k", "v", "beta", "slot_bias", "weight")
        tensors = {name: y.to(dtype) for name in names if (y := getattr(self, name)) is not None}
        state = {name: y.to(dtype) for name, y in self.state.state_dict().items() if y.is_floating_point()}
        return replace(self, state=self.state.replace(**state), **tensors)


def draw(shape: Shape, device: torch.device | str, seed: int = 0) -> Inputs:
    """Draw a call's tensors on a device.

    Keys lie in tight clusters, twice as many as there are slots, so that rounding hardly ever decides where one goes,
    and results of different precision can be compared.
    """
    (b, t), g, d, n = shape.sizes, shape.heads, shape.head, shape.capacity
    h, dtype = g * shape.group, DTYPES[shape.dtype]
    device = torch.device(device)
    if device.type == "meta":
        q, k, v = (torch.empty(b, t, heads, d, dtype=dtype, device=device) for heads in (h, g, g))
        centres = torch.empty(g, 2 * n, d, device=device)
        choice = generator = None
    else:
        generator = torch.Generator(device).manual_seed(seed)
        q, weight, v = (_normal(b, t, heads, d, generator=generator).to(dtype) for heads in (h, h, g))
        centres = _normal(g, 2 * n, d, generator=generator)
        choice = torch.randint(2 * n, (b, t, g), generator=generator, device=device)
        near = centres[torch.arange(g, device=device), choice]
        k = (near + 0.01 * _normal(b, t, g, d, generator=generator)).to(dtype)
    masked = shape.masked or shape.kind == "resume"
    state = DictionaryState.empty((1 if shape.one else b, g, n, d, d), device=device)
    if shape.kind in ("resume", "decode", "shared", "write"):
        state = _filled(shape, state, centres)
    if shape.pending:
        recent = centres[:, : shape.pending].transpose(0, 1).expand(b, -1, -1, -1).contiguous()  # [B, p, G, D]
        state = state.replace(
            pending_keys=normalize(recent, dim=-1),
            pending_values=recent,
            pending_mask=torch.ones(b, shape.pending, dtype=torch.bool, device=device),
        )
    mask = None
    if masked:
        mask = torch.ones(b, t, dtype=torch.bool, device=device)
        mask[:, 3::7] = False
    return Inputs(
        q,
        k,
        v,
        torch.full((h,), d**0.5, device=device),
        torch.full((h,), -0.5, device=device) if shape.biased else None,
        mask,
        state,
        torch.empty_like(q) if generator is None else weight,
    )


def _normal(*sizes: int, generator: torch.Generator) -> Tensor:
    return torch.randn(sizes, generator=generator, device=generator.device)


def _filled(shape: Shape, state: DictionaryState, centres: Tensor) -> DictionaryState:
    """Three quarters of the slots in use, with different counts."""
    used = torch.arange(shape.capacity, device=centres.device) < 3 * shape.capacity // 4  # [N]
    counts = (torch.arange(shape.capacity, device=centres.device) % 50 + 1) * used
    keys = normalize(centres[:, : shape.capacity], dim=-1) * used[:, None]
    rows = state.batch
    return state.replace(
        counts=counts.expand(rows, shape.heads, -1).contiguous(),
        keys=keys.expand(rows, -1, -1, -1).contiguous(),
        values=(centres[:, : shape.capacity] * used[:, None]).expand(rows, -1, -1, -1).contiguous(),
        size=used.sum().expand(rows, shape.heads).contiguous(),
        tokens=counts.sum().expand(rows).contiguous(),
    )


def run(shape: Shape, x: Inputs, implementation: str = "triton", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Make a call.

    Args:
        shape: the call.
        x: its tensors.
        implementation: of the operator.
        dtype: what the inputs are cast to first; as they are if None.

    Returns:
        Outputs, gradients and what was written, by name.
    """
    if dtype is not None:
        x = x.to(dtype)
    if shape.kind == "write":
        state, slots = update(x.state, x.k, x.v, shape.options, x.mask, implementation)
        return {"slots": slots} | _written(state)
    if shape.kind in ("train", "resume", "shared"):
        return _differentiated(shape, x, implementation)
    with torch.no_grad():
        o, final = _attend(shape, x, implementation)
    return {"o": o} | ({} if final is None else _written(final))


def _attend(shape: Shape, x: Inputs, implementation: str) -> tuple[Tensor, DictionaryState | None]:
    return ovq_attention(
        x.q,
        x.k,
        x.v,
        x.beta,
        shape.options,
        mask=x.mask,
        initial_state=x.state,
        slot_bias=x.slot_bias,
        output_final_state=shape.kind in ("resume", "decode"),
        implementation=implementation,
    )


def _differentiated(shape: Shape, x: Inputs, implementation: str) -> dict[str, Tensor]:
    """Outputs, and gradients of every input: of the dictionary's means too, but where training begins without any."""
    inputs = {"q": x.q, "k": x.k, "v": x.v, "beta": x.beta}
    if x.slot_bias is not None:
        inputs["slot_bias"] = x.slot_bias
    means = {} if shape.kind == "train" else {"keys": x.state.keys, "values": x.state.values}
    inputs, means = ({name: y.detach().requires_grad_() for name, y in some.items()} for some in (inputs, means))
    o, final = _attend(shape, replace(x, state=x.state.replace(**means), **inputs), implementation)
    outputs, weights = [o], [x.weight.to(o.dtype)]
    if final is not None:
        outputs += [final.keys, final.values]
        weights += [final.keys.detach(), final.values.detach()]
    gradients = torch.autograd.grad(outputs, [*inputs.values(), *means.values()], weights)
    found = {f"d_{name}": y for name, y in zip((*inputs, *means), gradients, strict=True)}
    return {"o": o.detach()} | found | ({} if final is None else _written(final.detach()))


def _written(state: DictionaryState) -> dict[str, Tensor]:
    return {"counts": state.counts, "keys": state.keys, "values": state.values}
