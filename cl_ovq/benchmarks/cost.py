"""A cost model of the Triton kernels: operations and bytes of every chunk, and the time that they take at best.

It is a model, not a measurement. It knows a machine by a few numbers and takes every kernel at a stated share of them;
no number in it was fitted to a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kernels import GROWTH, DictionaryOptions

MATMUL_SHARE = 0.5  # of the matrix-product rate, for products of the sizes that a tile has; flash attention likewise
VECTOR_LANES = 128  # fp32 operations that a core starts per clock


@dataclass(frozen=True)
class Machine:
    """What the model knows of a GPU.

    Attributes:
        name: in words.
        matmul: operations per second of large 16-bit matrix products.
        memory: bytes per second from and to memory.
        cores: streaming multiprocessors.
        clock: cycles per second.
        cache: bytes per second that one core reads from the second-level cache.
        latency: seconds between dependent steps of a chunk: memory there and back, all warps waiting for each other.
    """

    name: str
    matmul: float
    memory: float
    cores: int
    clock: float = 1.7e9
    cache: float = 40e9
    latency: float = 1e-6


# Peak rates of the data sheets (16-bit, dense).
MACHINES = {
    "a100": Machine("NVIDIA A100 (modelled)", 312e12, 2.0e12, 108, 1.4e9, 30e9),
    "h100": Machine("NVIDIA H100 (modelled)", 989e12, 3.35e12, 132),
    "h200": Machine("NVIDIA H200 (modelled)", 989e12, 4.8e12, 132),
    "b200": Machine("NVIDIA B200 (modelled)", 2250e12, 8.0e12, 148, 1.8e9, 45e9),
}


@dataclass(frozen=True)
class Cost:
    """What a call costs.

    Attributes:
        operations: of matrix products.
        traffic: bytes from and to memory that any implementation must move: inputs and outputs, once each.
        scan: seconds of the walk along the chunks, which writes the dictionary.
        read: seconds of the reads, forward.
        backward: seconds of all that goes back; zero forward.
    """

    operations: float
    traffic: float
    scan: float
    read: float
    backward: float

    @property
    def seconds(self) -> float:
        """Of the whole call."""
        return self.scan + self.read + self.backward


def cost(
    machine: Machine,
    *,
    tokens: int,
    capacity: int,
    chunk: int,
    heads: int,
    head_dim: int,
    rows: int = 1,
    backward: bool = False,
    growth: str = "plateau",
) -> Cost:
    """Model a call on 16-bit inputs.

    The scan has one program per row and head, which has one core to itself: a chunk waits for matrix products, for the
    comparisons of scores, or for the dictionary from the cache, whichever takes longest, and for the latency of its
    eight dependent steps. Everything else is spread over all cores.

    Args:
        machine: where.
        tokens: T.
        capacity: N.
        chunk: L.
        heads: H.
        head_dim: D, of keys and values.
        rows: B.
        backward: whether gradients are taken too.
        growth: schedule of slots.
    """
    options = DictionaryOptions(capacity=capacity, chunk_size=chunk, growth=growth)
    starts = torch.arange(0, tokens, chunk)
    slots = GROWTH[growth](starts, options).clamp(max=capacity).double()
    d, chunks, lines = head_dim, len(starts), rows * heads
    total_slots = float(slots.sum())
    core = machine.matmul * MATMUL_SHARE / machine.cores
    lanes = machine.clock * VECTOR_LANES

    # Scan, of one line. Two products per slot (a 16-bit key with both halves of an fp32 mean); of the chunk with
    # itself one for similarity, and two and one for the sums of keys and values.
    products = 2.0 * chunk * d * (2 * total_slots + 4 * chunk * chunks)
    comparisons = chunk * (7 * total_slots + 25 * chunk * chunks)
    loads = 4.0 * d * total_slots + 10 * chunk * 2 * d * chunks
    busy = max(products / core, comparisons / lanes, loads / machine.cache)
    rounds = -(-lines // machine.cores)
    scan = rounds * (busy + 8 * machine.latency * chunks)

    # Reads: two products per slot and per token of the half chunk before, over all cores.
    def spread(products_each: int, exponentials: int) -> float:
        met = total_slots + chunk / 2 * chunks
        operations = 2.0 * chunk * d * products_each * met * lines
        vector = exponentials * chunk * met * lines
        dictionary = 2.0 * 2 * d * total_slots * lines * max(1, chunk // 128)
        parallel = min(machine.cores, lines * chunks)
        return max(operations / (core * parallel), vector / (lanes * parallel), dictionary / (machine.cache * parallel))

    element = 2.0 * d * tokens * lines
    read = spread(2, 10) + 4 * element / machine.memory
    back = spread(3, 10) + spread(4, 12) + 12 * element / machine.memory if backward else 0.0
    operations = 2.0 * chunk * d * lines * ((3 + 7 * backward) * total_slots + (2 + 7 * backward) * chunk / 2 * chunks)
    return Cost(operations, element * (4 + 6 * backward), scan, read, back)


def flash_seconds(machine: Machine, *, tokens: int, heads: int, head_dim: int, rows: int = 1, backward: bool) -> float:
    """Causal flash attention at the same share of the matrix-product rate: two products forward, five more backward."""
    operations = 2.0 * tokens * tokens * head_dim * heads * rows * (3.5 if backward else 1.0)
    return operations / (machine.matmul * MATMUL_SHARE)


def decode_seconds(machine: Machine, *, capacity: int, heads: int, head_dim: int, rows: int = 1) -> float:
    """One token against a full dictionary in fp32: every line's dictionary through one core, at any position alike."""
    one = 8.0 * head_dim * capacity / machine.cache + 4 * machine.latency
    return -(-rows * heads // machine.cores) * one


def modelled_rows(name: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cost model's rows for cases (tokens, capacity, chunk, heads, head_dim, direction) on a machine by name."""
    machine = MACHINES[name]
    rows = []
    for case in cases:
        shape = {key: case[key] for key in ("tokens", "heads", "head_dim")}
        growth = case.get("growth", "plateau")
        backward = case["direction"] != "forward"
        found = cost(machine, capacity=case["capacity"], chunk=case["chunk"], growth=growth, backward=backward, **shape)
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
