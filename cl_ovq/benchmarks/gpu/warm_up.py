"""Compile every kernel that later parts launch, on all processors, into Triton's cache.

Native tests are not among them: they draw their own sizes, and compile side by side in processes of their own. Nor are
flash-linear-attention's kernels, which tune themselves on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

import torch
from triton.backends.compiler import GPUTarget

from cl_ovq.benchmarks.gpu import once, shapes
from cl_ovq.benchmarks.gpu.correctness import attend
from cl_ovq.benchmarks.gpu.parts import Item, Settings
from cl_ovq.benchmarks.gpu.speed import WARPS
from kernels.triton.ahead import aiming_at, compiled, key
from kernels.triton.compile import TARGETS
from kernels.triton.observing import Launch, recording
from kernels.triton.shapes import Shape, draw, run
from kernels.triton.tiles import for_target, replaced, target

Call = tuple[Callable[..., None], Hashable]  # a function of this module, and what it makes its calls of


def make(shape: Shape) -> None:
    """A call."""
    run(shape, draw(shape, "meta"))


def make_with_4_warps(shape: Shape) -> None:
    """A call, with as many warps for each kernel of `WARPS` in turn."""
    for kernel in WARPS:
        with replaced(kernel, warps=4):
            make(shape)


def decode(shape: Shape) -> None:
    """Two chunks, then token by token over the close of a third: with no, one and every number of pending tokens."""
    x = draw(shape, "meta")
    begin = 2 * shape.chunk
    _, state = attend(x.q[:, :begin], x.k[:, :begin], x.v[:, :begin], x.beta, shape, None)
    for _ in range(shape.chunk + 1):
        _, state = attend(x.q[:, :1], x.k[:, :1], x.v[:, :1], x.beta, shape, state)


def train(name: str) -> None:
    """A step of one of `training.MODELS`."""
    from cl_ovq.benchmarks.gpu import training

    training.step(training.MODELS[name]("meta", "triton"), *training.batch(name, "meta"))


@lru_cache(maxsize=4)
def launches(call: Call, name: str) -> list[Launch]:
    """What a call launches on a target."""
    function, argument = call
    with recording() as made, for_target(name):
        function(argument)
    return made


def _compile(work: tuple[Call, int, str, GPUTarget]) -> tuple[str, float, str]:
    call, index, name, aim = work
    made = launches(call, name)[index]
    begun = time.perf_counter()
    try:
        with aiming_at(aim):
            compiled(made)
    except Exception as error:  # one kernel that does not compile must not keep the others from it
        return made.kernel.__name__, time.perf_counter() - begun, f"{type(error).__name__}: {error}"[-500:]
    return made.kernel.__name__, time.perf_counter() - begun, ""


def calls(settings: Settings) -> list[Call]:
    """All calls of later parts; of a rehearsal the first alone."""
    rehearsal = settings.rehearsal
    found: list[Call] = [(make, shape) for shape in shapes.speed(rehearsal=rehearsal)]
    if rehearsal:
        return found[:1]
    found += [(make_with_4_warps, shapes.USUAL), *((decode, shape) for shape in shapes.decoding(rehearsal=False))]
    found += [(make, shape) for shape in shapes.correctness(rehearsal=False)]
    found += [(make, once.shape_of(kind)) for kind in once.KINDS]
    if find_spec("omegaconf"):  # models need it
        from cl_ovq.benchmarks.gpu import training

        found += [(train, name) for name in training.MODELS]
    return found


def compile_all(settings: Settings) -> dict[str, Any]:
    """Compile; what lies in the cache already takes no time."""
    begun = time.perf_counter()
    name = target(torch.device(settings.device))
    aim = TARGETS[name]
    if not settings.rehearsal:
        from triton.runtime import driver

        aim = driver.active.get_current_target()
    work: dict[str, tuple[Call, int, str, GPUTarget]] = {}
    with aiming_at(aim):
        for call in calls(settings):
            for index, made in enumerate(launches(call, name)):
                work.setdefault(key(made), (call, index, name, aim))
    listed = time.perf_counter() - begun
    found: list[tuple[str, float, str]] = []
    try:
        with ProcessPoolExecutor(settings.processes, mp_context=get_context("spawn")) as pool:
            found += pool.map(_compile, work.values())
    except BrokenProcessPool as error:
        found.append(("unknown", 0.0, str(error)))
    failures = [row for row in found if row[2]]
    return {
        "kernels": len(work),
        "processes": settings.processes,
        "seconds_to_list": listed,
        "compiler_seconds": sum(spent for _, spent, _ in found),
        "longest": max(found, key=lambda row: row[1])[:2],
        "failures": failures,
        "right": not failures,
    }


def items(settings: Settings) -> list[Item]:
    """One item; if it is cut off, what was compiled stays in the cache."""
    return [Item("compile", lambda: compile_all(settings), limit=240)]
