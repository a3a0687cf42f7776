"""From a call to its launches: forward, backward, and the write of a batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.triton.calls import Call
from kernels.triton.dictionary_backward import dictionary_backward
from kernels.triton.launch import launch, power
from kernels.triton.reading import read
from kernels.triton.reading_backward import finish_tokens, queries_backward, tokens_backward
from kernels.triton.scan import scan, trace
from kernels.triton.tiles import Tile


class Walk(NamedTuple):
    """What the scan leaves; see `scan` for shapes."""

    means: Tensor
    counts: Tensor
    size: Tensor
    codes: Tensor
    previous: Tensor
    last: Tensor
    versions: Tensor
    log_counts: Tensor
    sizes: Tensor


def walk(call: Call) -> Walk:
    """Write the dictionary along all chunks that close."""
    x, b, g, n, length = call.x, call.b, call.g, call.n, call.length
    counts = x.counts.expand(b, g, n).contiguous().clone() if x.counts.shape[0] == 1 else x.counts.clone()
    means = torch.cat([x.keys.detach(), x.values.detach()], -1).expand(b, g, n, call.dk + call.dv).contiguous()
    size = x.size.expand(b, g).clone(memory_format=torch.contiguous_format)
    integers: dict[str, Any] = {"dtype": torch.int32, "device": call.device}
    written = call.closes * length
    # Zero where no token leads, so that what is returned is the same in every call.
    versions = means.new_zeros(b, g, call.versions, call.dk + call.dv, dtype=call.dtype)
    versions[:, :, :n] = means
    log_counts = means.new_zeros(b, g, call.versions)
    log_counts[:, :, :n] = counts.to(means.dtype).log()
    result = Walk(
        means,
        counts.contiguous(),
        size,
        torch.empty(b, g, written, **integers),
        torch.empty(b, g, written, **integers),
        initial_versions(call),
        versions,
        log_counts,
        torch.empty(b, g, call.closes + 1, **integers),
    )
    arrivals = call.arrivals()
    options = call.options
    tile = call.tile("scan", length, n)
    launch(
        scan,
        (call.lines,),
        warps=tile.warps,
        stages=tile.stages,
        registers=tile.registers,
        **call.inputs,
        targets=call.targets(arrivals).contiguous(),
        arrivals=arrivals.int(),
        ranks=call.ranks(),
        **result._asdict(),
        similarity=means.new_empty(b, g, length),
        order=torch.empty(b, g, length, **integers),
        **call.strides,
        **call.sizes,
        N=n,
        closes=call.closes,
        versions_of_line=call.versions,
        threshold=float(options.novelty_threshold),
        rate=float(options.rate),
        NOVELTY=options.growth == "novelty",
        RANKED=options.seeds == "random",
        JOIN_SEEDS=options.assignment == "all",
        LEARNING_RATE=options.learning_rate,
        L=length,
        **call.flags,
        **call.value_flags,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.columns,
        BLOCK_I=tile.inner,
    )
    return result


def initial_versions(call: Call) -> Tensor:
    """`[B, G, N]` int32: a slot in use has the version of its own number, an empty one none."""
    slot = torch.arange(call.n, device=call.device, dtype=torch.int32)
    return torch.where(slot < call.x.size.expand(call.b, call.g)[..., None], slot, -1).contiguous()


def dictionary_of(call: Call, result: Walk | None) -> dict[str, Any]:
    """The dictionary as the kernels that read get it: versions, or the state itself where no chunk closes."""
    if result is not None:
        versions, d = result.versions, call.dk + call.dv
        row, head = versions.stride(0), versions.stride(1)
        strides = {"key_line_row": row, "key_line_head": head, "key_stride": d}
        strides |= {"value_line_row": row, "value_line_head": head, "value_stride": d}
        return {"keys": versions, "values": versions[..., call.dk :], **strides}
    found: dict[str, Any] = {}
    for name, x in (("key", call.x.keys), ("value", call.x.values)):
        x = x.detach()
        if x.stride(-1) != 1:
            x = x.contiguous()
        found |= {f"{name}s": x, f"{name}_line_row": x.stride(0), f"{name}_line_head": x.stride(1)}
        found[f"{name}_stride"] = x.stride(2)
    return found


def counts_of(call: Call, result: Walk | None) -> dict[str, Any]:
    """Counts and sizes, likewise."""
    if result is None:
        counts, size = call.x.counts.contiguous(), call.x.size.contiguous()
        return {"counts": counts, "count_line": call.n, "sizes": size, "chunks": 1}
    counts, sizes = result.log_counts, result.sizes
    return {"counts": counts, "count_line": call.versions, "sizes": sizes, "chunks": call.closes + 1}


def _reads(call: Call, result: Walk | None, tile: Tile) -> list[dict[str, Any]]:
    """Arguments of the launches that cover all queries, wave by wave; each lists the versions it needs when used.

    A generator would do, but the table is the same memory for every wave.
    """
    first = 0 if call.shared else call.p * call.group // tile.rows
    common: dict[str, Any] = {"S": call.s, "N": call.n, "B": call.b, "L": call.length, "GROUP": call.group}
    if result is None:
        stop = call.tiles(tile.rows, call.group, call.chunks)
        return [common | {"first_tile": first, "first_chunk": 0, "table_of_line": 0, "stop": stop, "wave": 0}]
    waves = []
    for begin in range(0, call.chunks, call.wave):
        end = min(begin + call.wave, call.chunks)
        stop = call.tiles(tile.rows, call.group, end)
        at = max(first, call.tiles(tile.rows, call.group, begin))
        waves.append(
            common
            | {"first_tile": at, "first_chunk": begin, "table_of_line": call.wave, "stop": stop, "wave": end - begin}
        )
    return waves


class _Trace:
    """The table of versions, wave after wave."""

    def __init__(self, call: Call, result: Walk | None):
        self.call, self.result = call, result
        self.table: Tensor | None = None
        if result is not None:
            self.now = initial_versions(call)
            self.table = self.now.new_empty(call.b, call.g, call.wave, call.n)

    def advance(self, first_chunk: int, chunks: int) -> None:
        """List the versions of the next `chunks` chunks."""
        if self.result is None:
            return
        call = self.call
        block = power(min(call.n, 128))
        launch(
            trace,
            (call.lines, -(-call.n // block)),
            warps=4,
            codes=self.result.codes,
            versions_now=self.now,
            table=self.table,
            N=call.n,
            first_chunk=first_chunk,
            chunks=chunks,
            codes_of_line=call.closes * call.length,
            table_of_line=call.wave,
            L=call.length,
            BLOCK_M=power(call.length, most=64),
            BLOCK_N=block,
        )


def forward(call: Call, result: Walk | None, o: Tensor, lse: Tensor | None) -> None:
    """Fill the outputs `o [B, T, H, Dv]`, and `lse [B, T, H]` if given."""
    tile = call.tile("read", call.chunk_queries, max(call.n, call.chunk_tokens))
    versions = _Trace(call, result)
    for part in _reads(call, result, tile):
        chunks, stop = part.pop("wave"), part.pop("stop")
        versions.advance(part["first_chunk"], chunks)
        launch(
            read,
            (stop - part["first_tile"], call.g if call.shared else call.lines),
            warps=tile.warps,
            stages=tile.stages,
            registers=tile.registers,
            **call.queries,
            **call.inputs,
            **dictionary_of(call, result),
            **counts_of(call, result),
            table=versions.table,
            o=o,
            lse=lse,
            **call.query_strides,
            **call.strides,
            **call.sizes,
            **part,
            BIASED=call.x.slot_bias is not None,
            TRACED=call.traced,
            SHARED=call.shared,
            KEEP=lse is not None,
            READ_OUT=call.options.read_out,
            **call.flags,
            **call.value_flags,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.columns,
        )


class Gradients(NamedTuple):
    """Gradients to be filled; see `kernels.scan_backward.Gradients`, but one number per query of beta and bias."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    slot_bias: Tensor
    tokens: Tensor
    means: Tensor


def backward(
    call: Call, result: Walk | None, d_o: Tensor, o: Tensor, lse: Tensor, d_means: Tensor | None, grads: Gradients
) -> None:
    """Fill all gradients."""
    d_o, o = d_o.contiguous(), o.contiguous()
    delta = lse.new_empty(lse.shape)
    lines = call.g if call.shared else call.lines
    biased = call.x.slot_bias is not None
    read_out: dict[str, Any] = {"READ_OUT": call.options.read_out, "SHARED": call.shared}
    dictionary, counts = dictionary_of(call, result), counts_of(call, result)
    tile = call.tile("queries_backward", call.chunk_queries, max(call.n, call.chunk_tokens))
    versions = _Trace(call, result)
    for part in _reads(call, result, tile):
        chunks, stop = part.pop("wave"), part.pop("stop")
        versions.advance(part["first_chunk"], chunks)
        launch(
            queries_backward,
            (stop - part["first_tile"], lines),
            warps=tile.warps,
            stages=tile.stages,
            registers=tile.registers,
            d_o=d_o,
            o=o,
            lse=lse,
            **call.queries,
            **call.inputs,
            **dictionary,
            **counts,
            table=versions.table,
            d_q=grads.q,
            d_beta=grads.beta,
            d_bias=grads.slot_bias if biased else None,
            delta=delta,
            **call.query_strides,
            **call.strides,
            **call.sizes,
            **part,
            BIASED=biased,
            TRACED=call.traced,
            **read_out,
            **call.flags,
            **call.value_flags,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.columns,
        )

    places: dict[str, Any] = {"S": call.s, "B": call.b, "L": call.length, "GROUP": call.group}
    tile = call.tile("tokens_backward", call.chunk_queries, call.chunk_tokens)
    launch(
        tokens_backward,
        (call.tiles(tile.columns, 1, call.chunks), lines),
        warps=tile.warps,
        stages=tile.stages,
        registers=tile.registers,
        d_o=d_o,
        lse=lse,
        delta=delta,
        **{name: x for name, x in call.queries.items() if name != "slot_bias"},
        **call.inputs,
        d_tokens=grads.tokens,
        **call.query_strides,
        **call.strides,
        **call.sizes,
        **places,
        **read_out,
        **call.flags,
        **call.value_flags,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.columns,
    )

    if call.traced or grads.means.shape[0]:
        flags = {name: x for name, x in call.flags.items() if name != "PENDING"}
        tile = call.tile("dictionary_backward", call.chunk_queries, call.n)
        launch(
            dictionary_backward,
            (-(-call.n // tile.columns), lines),
            warps=tile.warps,
            stages=tile.stages,
            registers=tile.registers,
            d_o=d_o,
            lse=lse,
            delta=delta,
            **call.queries,
            mask=call.inputs["mask"],
            pending_mask=None,
            **dictionary,
            counts=counts["counts"] if result is None else result.counts,
            log_counts=None if result is None else result.log_counts,
            size=call.x.size.contiguous(),
            last=None if result is None else result.last,
            previous=None if result is None else result.previous,
            codes=None if result is None else result.codes,
            d_final=None if d_means is None else d_means.contiguous(),
            d_initial=grads.means if grads.means.shape[0] else None,
            d_tokens=grads.tokens,
            **call.query_strides,
            **call.sizes,
            log_count_line=call.versions,
            N=call.n,
            closes=call.closes,
            rate=float(call.options.rate),
            **places,
            BIASED=biased,
            TRACED=call.traced,
            FINAL=d_means is not None,
            INITIAL=bool(grads.means.shape[0]),
            LEARNING_RATE=call.options.learning_rate,
            **read_out,
            **flags,
            **call.value_flags,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.columns,
        )

    rows = power(call.t, most=32)
    launch(
        finish_tokens,
        (-(-call.t // rows), call.lines),
        warps=4,
        d_tokens=grads.tokens,
        k=call.inputs["k"],
        mask=call.inputs["mask"],
        d_k=grads.k,
        d_v=grads.v,
        k_row=call.strides["k_row"],
        k_token=call.strides["k_token"],
        k_head=call.strides["k_head"],
        T=call.t,
        P=call.p,
        S=call.s,
        G=call.g,
        MASKED=call.flags["MASKED"],
        DK=call.dk,
        BLOCK_K=call.flags["BLOCK_K"],
        **call.value_flags,
        BLOCK_M=rows,
    )
