"""How long calls, each of their kernels, decoding and peers take, and what memory a call needs."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch

from cl_ovq.benchmarks.gpu import peers, shapes
from cl_ovq.benchmarks.gpu.clock import seconds_of
from cl_ovq.benchmarks.gpu.correctness import TOLERANCE, attend, relative_rms
from cl_ovq.benchmarks.gpu.parts import Item, Settings
from kernels.triton.observing import timing
from kernels.triton.shapes import Inputs, Shape, draw, run
from kernels.triton.tiles import replaced

WARPS = ("read", "scan")  # kernels that are also tried with fewer warps


def call(shape: Shape, settings: Settings) -> dict[str, Any]:
    """Seconds of a call, and of each of its kernels; the rest goes into launches and small tensors."""
    x = draw(shape, settings.device)
    found: dict[str, Any] = {"seconds": seconds_of(lambda: run(shape, x), settings.device)}
    if settings.device == "cuda":
        found["kernels"] = kernel_seconds(shape, x)
    return found


def kernel_seconds(shape: Shape, x: Inputs, rounds: int = 5) -> dict[str, float]:
    """Median seconds that each kernel of a call takes, all its launches together."""
    rows = []
    for _ in range(rounds):
        with timing() as spans:
            run(shape, x)
        torch.cuda.synchronize()
        row: dict[str, float] = defaultdict(float)
        for span in spans:
            row[span.kernel] += span.begin.elapsed_time(span.end) / 1e3
        rows.append(row)
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def attention(name: str, shape: Shape, settings: Settings) -> dict[str, Any]:
    """Seconds of fused attention by one backend, forward or forward and backward."""
    x = draw(shape, settings.device)
    if shape.kind == "forward":
        with torch.no_grad():
            return {
                "seconds": seconds_of(lambda: peers.attention(peers.ATTENTION[name], x.q, x.k, x.v), settings.device)
            }
    leaves = [y.requires_grad_() for y in (x.q, x.k, x.v)]

    def differentiate() -> Any:
        return torch.autograd.grad(peers.attention(peers.ATTENTION[name], *leaves), leaves, x.weight)

    return {"seconds": seconds_of(differentiate, settings.device)}


def recurrent(name: str, shape: Shape, settings: Settings) -> dict[str, Any]:
    """Seconds of one of flash-linear-attention's kernels, forward."""
    x = draw(shape, settings.device)
    with torch.no_grad():
        return {"seconds": seconds_of(peers.recurrent(name, x.q, x.k, x.v), settings.device)}


def decode(shape: Shape, settings: Settings) -> dict[str, Any]:
    """Seconds of a step after a context, the closing of chunks included."""
    x = draw(shape, settings.device)
    warm = shape.chunk + 8  # so that a chunk has closed, and all is compiled
    steps = 2 * shape.chunk
    o, state = attend(x.q, x.k, x.v, x.beta, shape, None)
    for step in range(warm + steps):
        if step == warm:
            _wait(settings.device)
            begun = time.perf_counter()
        o, state = attend(x.q[:, :1], x.k[:, :1], x.v[:, :1], x.beta, shape, state)
    _wait(settings.device)
    spent = (time.perf_counter() - begun) / steps
    return {"seconds_a_step": spent, "right": bool(o.isfinite().all())}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak(shape: Shape, settings: Settings) -> dict[str, Any]:
    """Bytes that a call needs at most beyond its inputs."""
    x = draw(shape, settings.device)
    if settings.device != "cuda":
        run(shape, x)
        return {"peak_bytes": None}
    run(shape, x)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(shape, x)
    torch.cuda.synchronize()
    return {"peak_bytes": torch.cuda.max_memory_allocated() - before, "bytes_of_keys": x.k.nbytes}


def fewer_warps(kernel: str, warps: int, shape: Shape, settings: Settings) -> dict[str, Any]:
    """A kernel with another number of warps: its time beside the usual one's, and whether results agree."""
    x = draw(shape, settings.device)
    usual = run(shape, x)
    timed = settings.device == "cuda"
    found: dict[str, Any] = {"usual_seconds": kernel_seconds(shape, x)[kernel] if timed else None}
    with replaced(kernel, warps=warps):
        other = run(shape, x)
        found["seconds"] = kernel_seconds(shape, x)[kernel] if timed else None
    error = relative_rms(other["o"], usual["o"])
    return found | {"warps": warps, "relative_rms": error, "right": error <= TOLERANCE[shape.dtype]}


def items(settings: Settings) -> list[Item]:
    """Ours and fused attention by turns, then decoding, memory and warps, then the recurrent peers."""
    calls = shapes.speed(rehearsal=settings.rehearsal)
    found = []
    for shape in calls:
        found.append(Item(shape.words, partial(call, shape, settings)))
        if not settings.rehearsal:
            names = peers.ATTENTION
            found += [Item(f"{name} {shape.words}", partial(attention, name, shape, settings), 20) for name in names]
    for shape in shapes.decoding(rehearsal=settings.rehearsal):
        found.append(Item(f"decode {shape.words}", partial(decode, shape, settings)))
    largest = max((shape for shape in calls if shape.kind == "train" and shape.heads == calls[0].heads), key=_tokens)
    found.append(Item(f"peak memory {largest.words}", partial(peak, largest, settings)))
    found += [Item(f"{name} with 4 warps", partial(fewer_warps, name, 4, calls[0], settings)) for name in WARPS]
    if find_spec("fla") and not settings.rehearsal:
        forward = (shape for shape in calls if shape.kind == "forward")
        found += [
            Item(f"{name} {shape.words}", partial(recurrent, name, shape, settings), 200)
            for shape, name in product(forward, peers.RECURRENT)
        ]
    return found


def _tokens(shape: Shape) -> int:
    return shape.sizes[1]
