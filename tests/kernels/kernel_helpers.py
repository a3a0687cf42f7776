"""What several tests of the operator need."""

import shutil
from dataclasses import dataclass, replace

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import (
    ASSIGNMENT,
    GROWTH,
    LEARNING_RATES,
    READ_OUTS,
    SEEDS,
    DictionaryOptions,
    DictionaryState,
    ovq_attention,
)

ON_GPU = torch.cuda.is_available()
NATIVE = shutil.which("g++") is not None and not ON_GPU  # a GPU's time is for its kernels
IMPLEMENTATIONS = ("reference", "chunked", *(("native",) if NATIVE else ()), "triton")


def dtype_of(implementation: str) -> torch.dtype:
    """The most exact dtype that an implementation serves."""
    return torch.float32 if implementation in ("native", "triton") else torch.float64


def tolerance_of(implementation: str) -> dict[str, float]:
    """How close to the exact result an implementation comes in that dtype; a GPU's fp32 products are less exact."""
    if implementation not in ("native", "triton"):
        return {}
    on_gpu = ON_GPU and implementation == "triton"
    return {"rtol": 1e-3, "atol": 1e-4} if on_gpu else {"rtol": 1e-4, "atol": 1e-5}


def served(options: DictionaryOptions, implementation: str) -> DictionaryOptions:
    """The options, without what the implementation cannot do."""
    if implementation not in ("native", "triton"):
        return options
    known = ("spread", "random") if implementation == "triton" else ("spread",)
    return replace(
        options,
        seeds=options.seeds if options.seeds in known else "spread",
        growth="all" if options.growth == "recycle" else options.growth,
        value_weight=0.0,
    )


def examples(count: int = 25, *, shrink: bool = True) -> settings:
    """So many examples, the same in every run; without `shrink` a failing one is shown as it is, where each is slow."""
    phases = [phase for phase in Phase if shrink or phase in (Phase.explicit, Phase.generate)]
    return settings(deadline=None, derandomize=True, max_examples=count, phases=phases)


@dataclass
class Inputs:
    """q `[B, T, H, Dk]`, k `[B, T, G, Dk]`, v `[B, T, G, Dv]`, beta `[H]`, mask `[B, T]`, perhaps slot_bias `[H]`."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    mask: Tensor
    slot_bias: Tensor | None = None

    def cut(self, start: int, stop: int) -> "Inputs":
        """The tokens from `start` to `stop`."""
        return self.on_tokens(lambda x: x[:, start:stop])

    def on_tokens(self, change) -> "Inputs":
        """With q, k, v and mask changed."""
        return replace(self, **{name: change(getattr(self, name)) for name in ("q", "k", "v", "mask")})

    def leaves(self) -> list[Tensor]:
        """q, k, v, beta, and slot_bias if there is one, as leaves of a new graph."""
        tensors = (self.q, self.k, self.v, self.beta, self.slot_bias)
        return [x.detach().clone().requires_grad_() for x in tensors if x is not None]

    def with_leaves(self, leaves: list[Tensor]) -> "Inputs":
        """The same with what `leaves` made."""
        names = ("q", "k", "v", "beta", "slot_bias")[: len(leaves)]
        return replace(self, **dict(zip(names, leaves, strict=True)))

    def to(self, dtype) -> "Inputs":
        """In another floating dtype."""
        names = ("q", "k", "v", "beta", "slot_bias")
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{name: x if x is None else x.to(dtype) for name, x in tensors.items()})

    def run(self, options, implementation, state=None):
        """Outputs and final state; on the GPU if there is one and the implementation is for it."""
        device = "cuda" if ON_GPU and implementation == "triton" else "cpu"
        o, final = ovq_attention(
            self.q.to(device),
            self.k.to(device),
            self.v.to(device),
            self.beta.to(device),
            options,
            mask=self.mask.to(device),
            initial_state=None if state is None else state.to(device),
            slot_bias=None if self.slot_bias is None else self.slot_bias.to(device),
            output_final_state=True,
            implementation=implementation,
        )
        return o.cpu(), final.to("cpu")


def random_inputs(
    b=1, t=12, h=2, dk=4, dv=3, *, group=1, biased=False, masked=0.0, dtype=torch.float64, seed=0
) -> Inputs:
    """Normal inputs of h key/value heads, with `group` query heads each, and a slot bias if `biased`.

    `masked` is the share of masked tokens, whose contents are NaN: they must not matter.
    """
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, b, t, h, dk, generator=g, dtype=torch.float64).to(dtype)
    v = torch.randn(b, t, h, dv, generator=g, dtype=torch.float64).to(dtype)
    beta = (torch.rand(h, generator=g, dtype=torch.float64) * 4 + 0.5).to(torch.promote_types(dtype, torch.float32))
    mask = torch.rand(b, t, generator=g) >= masked
    if group > 1:
        q = torch.randn(b, t, h * group, dk, generator=g, dtype=torch.float64).to(dtype)
        beta = (torch.rand(h * group, generator=g, dtype=torch.float64) * 4 + 0.5).to(beta.dtype)
    slot_bias = (torch.randn(h * group, generator=g, dtype=torch.float64) * 2).to(beta.dtype) if biased else None
    for x in (q, k, v):
        x[~mask] = torch.nan
    return Inputs(q, k, v, beta, mask, slot_bias)


def empty_state(inputs: Inputs, options: DictionaryOptions, batch: int | None = None) -> DictionaryState:
    """An empty state for these inputs."""
    b, _, h, dk = inputs.k.shape
    return DictionaryState.empty((batch or b, h, options.capacity, dk, inputs.v.shape[-1]), inputs.q.dtype)


@st.composite
def all_options(draw, **fixed) -> DictionaryOptions:
    """Options of every kind, small enough that chunks close, dictionaries fill and growth ends."""
    fields = {
        "capacity": draw(st.integers(1, 8)),
        "chunk_size": draw(st.integers(1, 7)),
        "growth": draw(st.sampled_from(list(GROWTH))),
        "growth_rate": draw(st.sampled_from([0.2, 1.0])),
        "concentration": 3.0,
        "novelty_threshold": draw(st.sampled_from([-0.5, 0.3, 0.9])),
        "value_weight": draw(st.sampled_from([0.0, 0.0, 0.5, 2.0])),
        "seeds": draw(st.sampled_from(SEEDS)),
        "assignment": draw(st.sampled_from(ASSIGNMENT)),
        "learning_rate": draw(st.sampled_from(LEARNING_RATES)),
        "rate": draw(st.sampled_from([0.05, 0.5])),
        "read_out": draw(st.sampled_from(READ_OUTS)),
        "query_norm": draw(st.booleans()),
        "seed": draw(st.integers(0, 9)),
    }
    return DictionaryOptions(**{**fields, **fixed})


@st.composite
def all_inputs(draw, dtype=torch.float64) -> Inputs:
    """Inputs of every shape, masks that may empty a chunk or a row among them."""
    inputs = random_inputs(
        b=draw(st.integers(1, 3)),
        t=draw(st.integers(1, 20)),
        h=draw(st.integers(1, 2)),
        group=draw(st.sampled_from([2, 1, 3])),
        biased=draw(st.booleans()),
        dk=draw(st.integers(2, 5)),
        dv=draw(st.integers(1, 4)),
        masked=draw(st.sampled_from([0.0, 0.0, 0.3, 0.9])),
        dtype=dtype,
        seed=draw(st.integers(0, 99)),
    )
    start, stop = sorted((draw(st.integers(0, 20)), draw(st.integers(0, 20))))
    if draw(st.booleans()):
        inputs.mask[0, start:stop] = False
    return inputs


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the error over that of what is expected."""
    actual, expected = actual.detach(), expected.detach()
    error = (actual.double() - expected.double()).square().mean().sqrt()
    return float(error / expected.double().square().mean().sqrt().clamp(min=1e-30))


def assert_states_close(actual: DictionaryState, expected: DictionaryState, **tolerance) -> None:
    """All tensors of two states agree."""
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(
            actual.state_dict()[name], tensor, **tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


def outputs_and_gradients(inputs, options, state, implementation):
    """Outputs, final state and every gradient that exists, of outputs and final state."""
    leaves = inputs.leaves()
    learned = {name: x.clone().requires_grad_() for name, x in state.state_dict().items() if x.is_floating_point()}
    o, final = inputs.with_leaves(leaves).run(options, implementation, state.replace(**learned))
    weight = torch.randn(o.shape, generator=torch.Generator().manual_seed(1)).to(o.dtype)
    loss = (o * weight).sum()
    for tensor in (final.keys, final.values, final.pending_keys, final.pending_values):
        loss = loss + tensor.pow(3).sum()
    return o, final, torch.autograd.grad(loss, [*leaves, *learned.values()], materialize_grads=True)


def assert_as_chunked(implementation, inputs, options, state):
    """Hold an implementation against the PyTorch path, which is tested against the specification."""
    close = tolerance_of(implementation)
    o, final, grads = outputs_and_gradients(inputs, options, state, "chunked")
    fast_o, fast_final, fast_grads = outputs_and_gradients(inputs, options, state, implementation)
    torch.testing.assert_close(fast_o, o, **close)
    assert_states_close(fast_final.detach(), final.detach(), **close)
    for actual, expected in zip(fast_grads, grads, strict=True):
        scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        torch.testing.assert_close(actual / scale, expected / scale, **close)


def assert_any_case_is_as_chunked(implementation, inputs, options, before, shared):
    """The same from a state of one row or many, of a dictionary that so many tokens were written to."""
    options = served(options, implementation)
    rows = 1 if shared else inputs.q.shape[0]
    state = empty_state(inputs, options, rows)
    if before:
        history = random_inputs(
            rows, before, *inputs.k.shape[2:], inputs.v.shape[-1], masked=0.2, dtype=torch.float32, seed=7
        )
        with torch.no_grad():
            _, state = history.run(options, "chunked", state)
    assert_as_chunked(implementation, inputs, options, state)
