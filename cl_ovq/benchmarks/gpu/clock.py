"""How long something takes: by events on a GPU, by the processor's clock on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def seconds_of(run: Callable[[], Any], device: str, *, budget: float = 0.5, most: int = 20) -> dict[str, Any]:
    """Time a function.

    Args:
        run: what is timed; launches are not waited for in between.
        device: `cuda` or `cpu`.
        budget: seconds to spend, after two calls that do not count; it is called three times at least.
        most: calls at most.

    Returns:
        Median, minimum and maximum in seconds, and how many calls.
    """
    for _ in range(2):
        run()
    begun, times = time.perf_counter(), list[float]()
    while len(times) < 3 or (len(times) < most and time.perf_counter() - begun < budget):
        times.append(_once(run, device))
    return {"median": statistics.median(times), "minimum": min(times), "maximum": max(times), "calls": len(times)}


def _once(run: Callable[[], Any], device: str) -> float:
    if device != "cuda":
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
