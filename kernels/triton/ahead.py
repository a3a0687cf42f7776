"""Compile what a launch would compile, without making the launch.

Triton itself decides how a launch specialises its kernel, so what lies in its cache afterwards is what a real launch
looks up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from kernels.triton.observing import Launch


class _Absent:
    """Stands in for the driver of a GPU that need not be here: Triton asks it what to compile for."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return f"{self.target.backend} {self.target.arch}"  # Triton keeps its kernels by this

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def aiming_at(target: GPUTarget) -> Iterator[None]:
    """Compile for a target, whatever GPU there is."""
    before = driver._active
    driver.set_active(_Absent(target))
    try:
        yield
    finally:
        driver.set_active(before)


def key(made: Launch) -> str:
    """What tells a launch's compiled kernel from others; only inside `aiming_at`."""
    *_, bind = made.kernel.device_caches[driver.active.get_current_device()]
    _, specialization, options = bind(**made.arguments, **made.options)
    return str((made.kernel.__name__, specialization, options))


def compiled(made: Launch) -> Any:
    """Triton's compiled kernel of a launch; only inside `aiming_at`."""
    return made.kernel.run(grid=made.grid, warmup=True, **made.arguments, **made.options)
