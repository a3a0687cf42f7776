"""The kernels against the PyTorch path in fp64, at the sizes that are timed, and against themselves."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from cl_ovq.benchmarks.gpu import shapes
from cl_ovq.benchmarks.gpu.parts import Item, Settings
from kernels import DictionaryState, ovq_attention
from kernels.triton.shapes import Shape, draw, run

# Relative root mean square of the error that rounding explains; a sum over all queries, whose terms nearly cancel, may
# have more of it.
TOLERANCE = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-3}
SUMS = ("d_beta", "d_slot_bias")


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the error over that of what is expected; NaN where there is one."""
    error = (actual.double() - expected.double()).square().mean().sqrt()
    return float(error / expected.double().square().mean().sqrt().clamp(min=1e-30))


def compare(shape: Shape, device: str) -> dict[str, Any]:
    """A call twice, and once in fp64."""
    x = draw(shape, device)
    first, again = run(shape, x), run(shape, x)
    expected = run(shape, x, "chunked", torch.float64)
    errors = {name: relative_rms(y, expected[name]) for name, y in first.items()}
    allowed = {name: TOLERANCE[shape.dtype] * (10 if name in SUMS else 1) for name in errors}
    same = all(torch.equal(y, again[name]) for name, y in first.items())
    close = all(error <= allowed[name] for name, error in errors.items())  # which NaN is not
    return {"relative_rms": errors, "same_bits": same, "right": same and close}


def attend(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, shape: Shape, state: DictionaryState | None
) -> tuple[Tensor, DictionaryState]:
    """Outputs and the state after them, by the kernels and without gradients."""
    with torch.no_grad():
        o, final = ovq_attention(
            q, k, v, beta, shape.options, initial_state=state, output_final_state=True, implementation="triton"
        )
    assert final is not None
    return o, final


def decode(shape: Shape, device: str) -> dict[str, Any]:
    """A sequence whole, and its end token by token, over the close of a chunk."""
    x = draw(shape, device)
    start = shape.sizes[1] - shape.chunk - 3
    whole, _ = attend(x.q, x.k, x.v, x.beta, shape, None)
    o, state = attend(x.q[:, :start], x.k[:, :start], x.v[:, :start], x.beta, shape, None)
    outputs = [o]
    for t in range(start, shape.sizes[1]):
        o, state = attend(x.q[:, t : t + 1], x.k[:, t : t + 1], x.v[:, t : t + 1], x.beta, shape, state)
        outputs.append(o)
    error = relative_rms(torch.cat(outputs, 1), whole)
    return {"relative_rms": {"o": error}, "right": error <= TOLERANCE[shape.dtype]}


def items(settings: Settings) -> list[Item]:
    """Every call, and decoding."""
    calls = shapes.correctness(rehearsal=settings.rehearsal)
    found = [Item(shape.words, partial(compare, shape, settings.device)) for shape in calls]
    context = shapes.decoding(rehearsal=settings.rehearsal)[0]
    return [*found, Item("token by token", partial(decode, context, settings.device))]
