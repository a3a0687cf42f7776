"""Where the time of OVQ attention in PyTorch's operations goes, by kind of operation."""

from __future__ import annotations

import time

import torch
from torch.profiler import ProfilerActivity, profile

from cl_ovq.benchmarks.operator import Case, runner

KINDS = {
    "matrix products": ("bmm", "mm", "addmm", "baddbmm"),
    "softmax": ("softmax",),
    "copies": ("copy", "cat", "clone", "index", "gather", "scatter", "fill", "zero", "empty", "where"),
    "search for the nearest slot": ("max", "argmax", "amax", "topk", "sort"),
}
REST, PYTHON = "other small operations", "Python between operations"


def profile_operator(case: Case) -> dict[str, float]:
    """Return the share of each kind of operation in the time of one call, on one thread of a CPU.

    Args:
        case: what to run; its device must be a CPU.

    Returns:
        Shares by kind, which add up to one. What no operation accounts for is `Python between operations`: it holds the
        dispatch of operations too, and the profiler's own cost.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = runner(case, "chunked")
        run()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            begun = time.perf_counter()
            run()
            total = time.perf_counter() - begun
    finally:
        torch.set_num_threads(threads)
    shares = dict.fromkeys((*KINDS, REST), 0.0)
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            shares[_kind(event.key)] += event.self_cpu_time_total / 1e6 / total
    return shares | {PYTHON: max(0.0, 1 - sum(shares.values()))}


def _kind(operation: str) -> str:
    name = operation.removeprefix("aten::").strip("_")
    for kind, members in KINDS.items():
        if name in members or (kind != "matrix products" and any(name.startswith(member) for member in members)):
            return kind
    return REST
