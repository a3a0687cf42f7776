"""OVQ attention against exact causal attention: time, memory, and the share of the machine's matrix-product rate.

Both attend over the same queries, keys and values in the same run, in turn, so that whatever else the machine does hits
both. Memory is measured in a process of its own for each.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

import torch

from cl_ovq.benchmarks.peers import attention
from cl_ovq.runs.provenance import (
    code_revision,
    device_name,
    package_versions,
    peak_memory_bytes,
    reset_peak_memory,
    resident_bytes,
)
from kernels import GROWTH, DictionaryOptions

FORWARD, FORWARD_BACKWARD = "forward", "forward_backward"
METHODS = ("ovq", "sdpa")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Case:
    """One shape to measure (batch size 1).

    Attributes:
        tokens: T.
        capacity: N.
        chunk: L.
        heads: H.
        head_dim: D, of keys and values.
        dtype: a name in `DTYPES`.
        device: a PyTorch device.
        direction: `forward`, or `forward_backward` (gradients of queries, keys and values).
        growth: schedule of slots, a name in `kernels.GROWTH`.
    """

    tokens: int
    capacity: int
    chunk: int
    heads: int
    head_dim: int
    dtype: str
    device: str
    direction: str
    growth: str = "plateau"


SHAPE = tuple(field.name for field in fields(Case) if field.name != "tokens")


def measure_operator(
    cases: Sequence[Case],
    rounds: int = 5,
    report: Callable[[str], None] = lambda line: None,
    peers: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure every case.

    Args:
        cases: the shapes.
        rounds: timings of each method, after one that does not count; medians are reported.
        report: is told what is being measured.
        peers: further methods to measure beside the two: names in `PEERS`.

    Returns:
        `rows`, one per case with the fields of `Case`, seconds (median, minimum, maximum), `speedup` (the median over
        rounds of SDPA's time over OVQ's), peak bytes, and `matmul_share`, the floating-point operations per second of
        OVQ's matrix products over those of a large matrix product; with `peers`, of each the same three numbers;
        `series`, one per shape, with `slopes` and `crossover_tokens`; `machine`.
    """
    rows = []
    device = torch.device(cases[0].device)
    rates = {name: matmul_rate(name, device) for name in dict.fromkeys(case.dtype for case in cases)}
    for case in cases:
        report(f"{case.direction} {case.tokens} tokens")
        seconds = _time(case, rounds, (*METHODS, *peers))
        peaks = {method: peak_bytes(case, method) for method in (*METHODS, *peers)}
        ovq, sdpa = (statistics.median(seconds[method]) for method in METHODS)
        rows.append(
            asdict(case)
            | {
                "ovq_seconds": ovq,
                "ovq_seconds_range": [min(seconds["ovq"]), max(seconds["ovq"])],
                "sdpa_seconds": sdpa,
                "sdpa_seconds_range": [min(seconds["sdpa"]), max(seconds["sdpa"])],
                "speedup": statistics.median(s / o for o, s in zip(seconds["ovq"], seconds["sdpa"], strict=True)),
                "ovq_peak_bytes": peaks["ovq"],
                "sdpa_peak_bytes": peaks["sdpa"],
                "matmul_share": operations(case) / ovq / rates[case.dtype],
                "peers": {peer: _beside(seconds[peer], seconds["ovq"], peaks[peer]) for peer in peers},
            }
        )
    return {
        "rows": rows,
        "series": [
            {name: value for name, value in group[0].items() if name in SHAPE}
            | {"slopes": slopes(group), "crossover_tokens": crossover(group)}
            for group in series(rows).values()
        ],
        "machine": {
            "device": device_name(device),
            "matmul_flops": rates,
            "packages": package_versions(),
            "code": code_revision(),
        },
        "rounds": rounds,
    }


def series(rows: Iterable[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Group rows that differ in their number of tokens only, in the order of tokens.

    The keys are the values of `SHAPE`; results of older revisions are of growth `plateau`.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["tokens"]):
        groups.setdefault(tuple(row.get(name, "plateau") for name in SHAPE), []).append(row)
    return groups


def slopes(rows: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Return by how much OVQ's time grows from each number of tokens to the next, and the exponent of that growth."""
    found = []
    for low, high in pairwise(rows):
        factor = high["ovq_seconds"] / low["ovq_seconds"]
        exponent = math.log(factor) / math.log(high["tokens"] / low["tokens"])
        found.append({"from": low["tokens"], "to": high["tokens"], "factor": factor, "exponent": exponent})
    return found


def crossover(rows: Sequence[dict[str, Any]]) -> int | None:
    """Return the smallest measured number of tokens from which on OVQ is at least as fast; None if there is none."""
    found = None
    for row in reversed(rows):
        if row["speedup"] < 1:
            break
        found = row["tokens"]
    return found


def operations(case: Case) -> float:
    """Return the floating-point operations of OVQ's matrix products, from the slots in use at each chunk.

    Forward, a token meets each of the n slots in use three times (read-out logits, read-out values, similarity for its
    own assignment) and half its chunk twice; backward, the read-out takes five products in place of two, its logits
    being made again.
    """
    options = _options(case)
    schedule = GROWTH[options.growth]
    dim, total = case.head_dim, 0.0
    slot_products, token_products = (3, 2) if case.direction == FORWARD else (3 + 5, 2 + 5)
    for start in range(0, case.tokens, case.chunk):
        length = min(case.chunk, case.tokens - start)
        slots = min(case.capacity, float(schedule(torch.tensor(start), options)))
        total += 2.0 * length * dim * (slot_products * slots + token_products * length / 2)
    return total * case.heads


def matmul_rate(dtype: str, device: torch.device, rounds: int = 5) -> float:
    """Return the floating-point operations per second of a product of two square matrices, the best of some rounds."""
    size = 8192 if device.type == "cuda" else 2048  # what a GPU does in microseconds says little of its rate
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    best = min(_seconds(lambda: a @ b, device) for _ in range(rounds + 1))
    return 2.0 * size**3 / best


def peak_bytes(case: Case, method: str) -> int:
    """Return the most memory that a method needs, measured in a process of its own.

    On a CPU it is the growth of resident memory, on a GPU that of allocated memory, over what the process holds before
    the inputs are made: inputs, output, gradients and all in between count, libraries do not.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure_peak, case, method, torch.get_num_threads()).result()


def _measure_peak(case: Case, method: str, threads: int) -> int:
    torch.set_num_threads(threads)
    device = torch.device(case.device)
    run = runner(replace(case, tokens=min(case.tokens, 2 * case.chunk)), method)
    run()  # libraries load and thread pools start before the measurement
    reset_peak_memory(device)
    before = resident_bytes(device)
    runner(case, method)()
    return max(0, peak_memory_bytes(device) - before)


def _beside(seconds: Sequence[float], ovq: Sequence[float], peak: int) -> dict[str, Any]:
    """Return what is said of a peer; `speedup` is its time over OVQ's, the median over rounds."""
    return {
        "seconds": statistics.median(seconds),
        "seconds_range": [min(seconds), max(seconds)],
        "speedup": statistics.median(s / o for o, s in zip(ovq, seconds, strict=True)),
        "peak_bytes": peak,
    }


def _time(case: Case, rounds: int, methods: Sequence[str]) -> dict[str, list[float]]:
    device = torch.device(case.device)
    runners = {method: runner(case, method) for method in methods}
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for number in range(rounds + 1):
        for method, run in runners.items():
            spent = _seconds(run, device)
            if number:
                seconds[method].append(spent)
    return seconds


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def _options(case: Case) -> DictionaryOptions:
    return DictionaryOptions(capacity=case.capacity, chunk_size=case.chunk, growth=case.growth)


def runner(case: Case, method: str) -> Callable[[], Any]:
    """Return a function that attends once, over inputs that are made now.

    Args:
        case: the shape.
        method: see `peers.attention`.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (1, case.tokens, case.heads, case.head_dim)
    q, k, v = (torch.randn(shape, generator=generator).to(case.device, DTYPES[case.dtype]) for _ in range(3))
    beta = torch.full((case.heads,), math.sqrt(case.head_dim), device=case.device)
    options = _options(case)
    backward = case.direction == FORWARD_BACKWARD
    inputs = [q, k, v]
    gradient = torch.ones_like(v) if backward else None
    for tensor in inputs:
        tensor.requires_grad_(backward)

    attend = attention(method, beta, options)

    def run() -> Any:
        if not backward:
            with torch.no_grad():
                return attend(q, k, v)
        return torch.autograd.grad(attend(q, k, v), inputs, gradient)

    return run
