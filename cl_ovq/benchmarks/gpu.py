"""What the operator's benchmark adds on a GPU: peers, ceilings of the same run, decoding, the cost model beside it."""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from cl_ovq.benchmarks.cost import MACHINES, Machine, cost, decode_seconds, flash_seconds
from kernels import DictionaryOptions, ovq_attention

PEERS = ("gated_delta", "mamba2", "gsa")  # flash-linear-attention's chunked kernels
DECODE_CONTEXTS = (1024, 16384, 65536)


def available_peers() -> tuple[str, ...]:
    """The peers that this installation has."""
    return PEERS if importlib.util.find_spec("fla") else ()


def peer(name: str, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """A function that mixes `[B, T, H, D]` by one of `PEERS`, its gates drawn now; GSA has 64 slots, as is usual."""
    b, t, h, _ = q.shape
    gate = logsigmoid(torch.randn(b, t, h, device=q.device))
    if name == "gated_delta":
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        strength = torch.rand(b, t, h, device=q.device, dtype=q.dtype)
        return lambda: chunk_gated_delta_rule(q=q, k=normalize(k, dim=-1), v=v, g=gate, beta=strength)[0]
    if name == "mamba2":
        from fla.ops.simple_gla import chunk_simple_gla

        return lambda: chunk_simple_gla(q=q, k=k, v=v, g=gate)[0]
    from fla.ops.gsa import chunk_gsa

    slots = torch.randn(b, t, h, 64, device=q.device, dtype=q.dtype)
    decay = logsigmoid(slots.float()).to(q.dtype) / 16
    return lambda: chunk_gsa(q=q, k=k, v=v, s=slots, g=decay)[0]


def seconds_of(run: Callable[[], Any], rounds: int, warm: int = 3) -> list[float]:
    """Times of a function on a GPU, each waited for."""
    found = []
    for number in range(rounds + warm):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if number >= warm:
            found.append(time.perf_counter() - begun)
    return found


def copy_rate(device: torch.device, size: int = 1 << 29) -> float:
    """Bytes per second, read and written, of a copy of `size` bytes; the best of ten."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * size / min(seconds_of(lambda: target.copy_(source), 10))


def measured_machine(device: torch.device, matmul: float) -> Machine:
    """This GPU with its ceilings as measured in this run; what was not measured is the cost model's default."""
    properties = torch.cuda.get_device_properties(device)
    return Machine(properties.name, matmul, copy_rate(device), properties.multi_processor_count)


def decode_rows(device: torch.device, capacity: int, chunk: int, heads: int, head_dim: int) -> list[dict[str, Any]]:
    """Time of a decoding step (B = 1, bfloat16) after contexts of several lengths, over two chunks of steps."""
    options = DictionaryOptions(capacity=capacity, chunk_size=chunk)
    beta = torch.full((heads,), math.sqrt(head_dim), device=device)

    def tokens(count: int) -> Tensor:
        return torch.randn(1, count, heads, head_dim, device=device, dtype=torch.bfloat16)

    rows = []
    with torch.no_grad():
        for context in DECODE_CONTEXTS:
            q, k, v = (tokens(context) for _ in range(3))
            _, state = ovq_attention(q, k, v, beta, options, output_final_state=True)
            x, times = tokens(1), []
            for step in range(4 * chunk):
                torch.cuda.synchronize()
                begun = time.perf_counter()
                _, state = ovq_attention(x, x, x, beta, options, initial_state=state, output_final_state=True)
                torch.cuda.synchronize()
                if step >= 2 * chunk:
                    times.append(time.perf_counter() - begun)
            rows.append(
                {
                    "context": context,
                    "median_seconds": statistics.median(times),
                    "mean_seconds": statistics.mean(times),
                    "tokens_per_second": len(times) / sum(times),
                }
            )
    return rows


def modelled_rows(name: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cost model's rows for cases (tokens, capacity, chunk, heads, head_dim, direction) on a machine by name."""
    machine = MACHINES[name]
    rows = []
    for case in cases:
        shape = {key: case[key] for key in ("tokens", "heads", "head_dim")}
        backward = case["direction"] != "forward"
        found = cost(machine, capacity=case["capacity"], chunk=case["chunk"], backward=backward, **shape)
        flash = flash_seconds(machine, backward=backward, **shape)
        rows.append(
            case
            | {
                "scan_seconds": found.scan,
                "read_seconds": found.read,
                "backward_seconds": found.backward,
                "seconds": found.seconds,
                "flash_seconds": flash,
                "speedup": flash / found.seconds,
                "matmul_share": found.operations / found.seconds / machine.matmul,
                "decode_seconds": decode_seconds(
                    machine, capacity=case["capacity"], heads=case["heads"], head_dim=case["head_dim"]
                ),
            }
        )
    return rows
