"""From a call to its launches: forward, backward, and the write of a batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.schema import Gradients
from kernels.triton.calls import Call
from kernels.triton.dictionary_backward import dictionary_backward
from kernels.triton.launch import launch, power
from kernels.triton.reading import read
from kernels.triton.reading_backward import finish_tokens, queries_backward, tokens_backward
from kernels.triton.scan import scan, trace
from kernels.triton.tiles import Tile


class ScanResult(NamedTuple):
    """What a call gives and what its gradient needs; where no chunk is filled all but `o` and `lse` are of no row.

    Args:
        o: `[B, T, H, Dv]` outputs.
        means: and the next eight: see `scan`.
        counts: of the final dictionary.
        size: likewise.
        codes: of tokens.
        previous: likewise.
        last: of slots.
        versions: of slots.
        log_counts: of versions.
        sizes: of chunks.
        lse: `[B, T, H]` logarithms, to base 2, of the softmax's denominators.
    """

    o: Tensor
    means: Tensor
    counts: Tensor
    size: Tensor
    codes: Tensor
    previous: Tensor
    last: Tensor
    versions: Tensor
    log_counts: Tensor
    sizes: Tensor
    lse: Tensor


def scan_chunks(call: Call, result: ScanResult) -> ScanResult:
    """Write the dictionary along all full chunks: `result` with what that leaves."""
    state, b, g, n, d = call.x.state, call.b, call.g, call.n, call.dk + call.dv
    means = torch.cat([state.keys.detach(), state.values.detach()], -1).expand(b, g, n, d).contiguous()
    counts = state.counts.expand(b, g, n).clone(memory_format=torch.contiguous_format)
    integers: dict[str, Any] = {"dtype": torch.int32, "device": call.device}
    written = call.full_chunks * call.length
    # Zero where no token leads, so that what is returned is the same in every call.
    versions = means.new_zeros(b, g, call.versions, d, dtype=call.dtype)
    versions[:, :, :n] = means
    log_counts = means.new_zeros(b, g, call.versions)
    log_counts[:, :, :n] = counts.to(means.dtype).log()
    result = result._replace(
        means=means,
        counts=counts,
        size=state.size.expand(b, g).clone(memory_format=torch.contiguous_format),
        codes=torch.empty(b, g, written, **integers),
        previous=torch.empty(b, g, written, **integers),
        last=initial_versions(call),
        versions=versions,
        log_counts=log_counts,
        sizes=torch.empty(b, g, call.full_chunks + 1, **integers),
    )
    arrivals = call.arrivals()
    own = {
        "targets": call.targets(arrivals).contiguous(),
        "arrivals": arrivals.int(),
        "ranks": call.ranks(),
        "similarity": means.new_empty(b, g, call.length),
        "order": torch.empty(b, g, call.length, **integers),
        "versions_of_line": call.versions,
    }
    tile = call.tile("scan", call.length, n)
    launch(scan, (call.batch_heads,), tile, call.arguments | result._asdict() | own)
    return result


def initial_versions(call: Call) -> Tensor:
    """`[B, G, N]` int32: a slot in use has the version of its own number, an empty one none."""
    slot = torch.arange(call.n, device=call.device, dtype=torch.int32)
    return torch.where(slot < call.x.state.size.expand(call.b, call.g)[..., None], slot, -1).contiguous()


def dictionary_of(call: Call, result: ScanResult) -> dict[str, Any]:
    """The dictionary as the kernels that read get it: versions, or the state itself where no chunk is filled."""
    state = call.x.state
    keys, values = state.keys.detach(), state.values.detach()
    if call.traced:
        keys, values = result.versions, result.versions[..., call.dk :]
        counts = {"counts": result.log_counts, "count_line": call.versions}
        counts |= {"sizes": result.sizes, "chunks": call.full_chunks + 1}
    else:
        counts = {"counts": state.counts.contiguous(), "count_line": call.n}
        counts |= {"sizes": state.size.contiguous(), "chunks": 1}
    return counts | _dictionary_rows("key", keys) | _dictionary_rows("value", values)


def _dictionary_rows(name: str, x: Tensor) -> dict[str, Any]:
    """Means `[B, G, rows, D]` and their strides."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    row, head, stride = x.stride()[:3]
    return {f"{name}s": x, f"{name}_line_row": row, f"{name}_line_head": head, f"{name}_stride": stride}


def _reads(call: Call, tile: Tile) -> list[dict[str, int]]:
    """Arguments of the launches that cover all queries, wave by wave, with the tiles and the chunks of each."""
    first = 0 if call.shared else call.p * call.group // tile.rows
    if not call.traced:
        tiles = call.tiles(tile.rows, call.group, call.chunks) - first
        return [{"first_tile": first, "first_chunk": 0, "table_of_line": 0, "tiles": tiles, "wave": 0}]
    waves = []
    for begin in range(0, call.chunks, call.wave):
        end = min(begin + call.wave, call.chunks)
        at = max(first, call.tiles(tile.rows, call.group, begin))
        tiles = call.tiles(tile.rows, call.group, end) - at
        place = {"first_tile": at, "first_chunk": begin, "table_of_line": call.wave}
        waves.append(place | {"tiles": tiles, "wave": end - begin})
    return waves


class _Trace:
    """The table of versions, wave after wave: the same memory for each."""

    def __init__(self, call: Call, result: ScanResult):
        self.call, self.result = call, result
        self.table: Tensor | None = None
        if call.traced:
            self.now = initial_versions(call)
            self.table = self.now.new_empty(call.b, call.g, call.wave, call.n)

    def advance(self, first_chunk: int, chunks: int) -> None:
        """List the versions of the next `chunks` chunks."""
        call = self.call
        if not call.traced:
            return
        own = {
            "codes": self.result.codes,
            "versions_now": self.now,
            "table": self.table,
            "first_chunk": first_chunk,
            "chunks": chunks,
            "codes_of_line": call.full_chunks * call.length,
            "table_of_line": call.wave,
        }
        tile = Tile(power(call.length, most=64), power(min(call.n, 128)), warps=4, stages=2)
        launch(trace, (call.batch_heads, -(-call.n // tile.columns)), tile, call.arguments | own)


def _launch_reads(kernel: Any, name: str, call: Call, result: ScanResult, own: dict[str, Any]) -> None:
    """Launch a kernel, `name` in the table of tiles, for all queries."""
    tile = call.tile(name, call.chunk_queries, max(call.n, call.chunk_tokens))
    versions = _Trace(call, result)
    arguments = call.arguments | dictionary_of(call, result) | {"table": versions.table} | own
    for part in _reads(call, tile):
        versions.advance(part["first_chunk"], part["wave"])
        launch(kernel, (part["tiles"], call.g if call.shared else call.batch_heads), tile, arguments | part)


def forward(call: Call, result: ScanResult, differentiate: bool) -> None:
    """Fill the outputs, and to `differentiate` the softmax's denominators."""
    lse = result.lse if differentiate else None
    _launch_reads(read, "read", call, result, {"o": result.o, "lse": lse, "KEEP": differentiate})


def backward(call: Call, result: ScanResult, d_o: Tensor, d_means: Tensor | None, grads: Gradients) -> Gradients:
    """All gradients, of which those of q, k, v and means are filled in."""
    d_o, biased, dk = d_o.contiguous(), call.x.slot_bias is not None, call.dk
    d_beta = result.lse.new_empty(result.lse.shape)
    d_bias = result.lse.new_empty(result.lse.shape if biased else (0, call.t, call.h))
    d_tokens = result.lse.new_empty(call.b, call.g, call.s, dk + call.dv)
    own: dict[str, Any] = {"d_o": d_o, "lse": result.lse, "delta": torch.empty_like(d_beta), "d_tokens": d_tokens}
    reads = {"o": result.o.contiguous(), "d_q": grads.q, "d_beta": d_beta, "d_bias": d_bias if biased else None}
    _launch_reads(queries_backward, "queries_backward", call, result, own | reads)

    batch_heads = call.g if call.shared else call.batch_heads
    tile = call.tile("tokens_backward", call.chunk_queries, call.chunk_tokens)
    grid = (call.tiles(tile.columns, 1, call.chunks), batch_heads)
    launch(tokens_backward, grid, tile, call.arguments | own)

    wants_means = bool(grads.means.shape[0])
    if call.traced or wants_means:
        tile = call.tile("dictionary_backward", call.chunk_queries, call.n)
        traced = dict.fromkeys(("log_counts", "last", "previous", "codes"))
        dictionary = dictionary_of(call, result)
        if call.traced:
            traced = {name: getattr(result, name) for name in traced}
            dictionary["counts"] = result.counts
        dictionary |= traced | {
            "pending_mask": None,
            "size": call.x.state.size.contiguous(),
            "d_final": None if d_means is None else d_means.contiguous(),
            "d_initial": grads.means if wants_means else None,
            "log_count_line": call.versions,
            "FINAL": d_means is not None,
            "INITIAL": wants_means,
        }
        grid = (-(-call.n // tile.columns), batch_heads)
        launch(dictionary_backward, grid, tile, call.arguments | own | dictionary)

    tile = Tile(power(call.t, most=32), 0, warps=4, stages=2)
    grid = (-(-call.t // tile.rows), call.batch_heads)
    launch(finish_tokens, grid, tile, call.arguments | own | {"d_k": grads.k, "d_v": grads.v})
    pending = d_tokens[:, :, : call.p].transpose(1, 2)
    return grads._replace(
        beta=d_beta.sum(1),
        slot_bias=d_bias.sum(1),
        pending_keys=pending[..., :dk].contiguous(),
        pending_values=pending[..., dk:].contiguous(),
    )
