"""Which tiles each kernel works in. Chosen so that nothing spills and shared memory fits (see `docs/kernels.md`)."""

from typing import NamedTuple

import torch

from kernels.triton.launch import power


class Tile(NamedTuple):
    """Rows (tokens or queries) and columns (slots or tokens) of a tile, the warps that share it, stages of loads."""

    rows: int
    columns: int
    warps: int
    stages: int = 2


def scan_tile(dtype: torch.dtype, tokens: int, head: int) -> Tile:
    """Of `scan` and the kernels of a batch write; `head` is the larger of key and value size."""
    wide = dtype == torch.float32
    rows = power(tokens, most=64 if wide else 128)
    columns = 32 if wide and head > 64 else 64
    return Tile(rows, columns, 8 if rows > 32 else 4, 1 if wide else 2)


def read_tile(dtype: torch.dtype, queries: int, head: int) -> Tile:
    """Of `read`; `queries` are those of a chunk, or of all rows that share a dictionary."""
    wide = dtype == torch.float32
    rows = power(queries, most=64 if wide else 128)
    columns = 32 if wide else 64
    return Tile(rows, columns, 8 if rows > 64 or head > 64 else 4, 1 if wide else 2)


def queries_backward_tile(dtype: torch.dtype, queries: int, head: int) -> Tile:
    """Of `queries_backward`."""
    wide = dtype == torch.float32
    rows = power(queries, most=64 if wide else 128)
    columns = 32 if wide or head > 64 else 64
    return Tile(rows, columns, 8 if rows > 32 else 4, 1 if wide else 2)


def tokens_backward_tile(dtype: torch.dtype, queries: int, tokens: int, head: int) -> Tile:
    """Of `tokens_backward`: columns are its tokens, rows the queries that it walks."""
    most = 32 if dtype == torch.float32 or head > 64 else 64
    return Tile(power(queries, most=most), power(tokens, most=64), 8, 1)


def dictionary_backward_tile(dtype: torch.dtype, queries: int, slots: int, head: int) -> Tile:
    """Of `dictionary_backward`: columns are its slots, rows the queries or tokens that it walks."""
    most = 32 if dtype == torch.float32 or head > 64 else 64
    return Tile(power(queries, most=most), power(slots, most=64), 8, 1)
