"""What a call of the operator hands to its kernels, put in order once: arguments by name, tiles, and sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.growth import target_size
from kernels.numerics import counter_hash
from kernels.schema import Arguments
from kernels.triton.launch import TYPES, power, precision, strides, widest
from kernels.triton.tiles import Tile, tile


def _rows(x: Tensor) -> Tensor:
    """With a last dimension that is contiguous, which kernels expect."""
    return x if x.stride(-1) == 1 else x.contiguous()


class Call:
    """One call: sizes, and the arguments that its kernels have in common.

    Letters: `B` rows, `T` new tokens, `P` pending ones, `S = P + T` positions, `H` query heads, `G` key/value heads,
    `N` capacity, `L` chunk, `V = N + full_chunks L` versions, `D = Dk + Dv`.
    """

    def __init__(self, x: Arguments, full_chunks: int):
        options, state = x.options, x.state
        self.x, self.options, self.full_chunks = x, options, full_chunks
        self.b, self.t, self.h, self.dk = x.q.shape
        self.g, self.dv = x.v.shape[2:]
        self.group = self.h // self.g
        self.n, self.length, self.p = options.capacity, options.chunk_size, state.pending
        self.s = self.p + self.t
        self.chunks = -(-self.s // self.length)
        self.batch_heads = self.b * self.g
        self.versions = self.n + full_chunks * self.length
        self.traced = full_chunks > 0
        self.shared = not self.traced and state.batch == 1 and self.b > 1
        self.dtype = widest(x.q, x.k, x.v)
        self.head = max(self.dk, self.dv)
        self.device = x.q.device
        usual = options.learning_rate == "adaptive" and options.seeds == "spread" and options.read_out == "raw"
        self.plain = usual and x.slot_bias is None and not self.p
        q, k, v = (_rows(y.detach()) for y in (x.q, x.k, x.v))
        # What several kernels name; each gets of it what it names.
        self.arguments: dict[str, Any] = {
            "q": q,
            "k": k,
            "v": v,
            "mask": None if x.mask is None else x.mask.contiguous().view(torch.uint8),
            "pending_k": state.pending_keys.detach().contiguous() if self.p else None,
            "pending_v": state.pending_values.detach().contiguous() if self.p else None,
            "pending_mask": state.pending_mask.contiguous().view(torch.uint8) if self.p else None,
            "beta": x.beta.detach().float().contiguous(),
            "slot_bias": None if x.slot_bias is None else x.slot_bias.detach().float().contiguous(),
            **strides("q", q),
            **strides("k", k),
            **strides("v", v),
            "pending_row": self.p if state.batch > 1 else 0,
            "T": self.t,
            "P": self.p,
            "S": self.s,
            "N": self.n,
            "B": self.b,
            "G": self.g,
            "closes": full_chunks,
            "rate": float(options.rate),
            "threshold": float(options.novelty_threshold),
            "MASKED": x.mask is not None,
            "PENDING": self.p > 0,
            "BIASED": x.slot_bias is not None,
            "TRACED": self.traced,
            "SHARED": self.shared,
            "NOVELTY": options.growth == "novelty",
            "RANKED": options.seeds == "random",
            "JOIN_SEEDS": options.assignment == "all",
            "LEARNING_RATE": options.learning_rate,
            "READ_OUT": options.read_out,
            "QUERY_NORM": options.query_norm,
            "DTYPE": TYPES[self.dtype],
            "PRECISION": precision(self.device),
            "L": self.length,
            "GROUP": self.group,
            "DK": self.dk,
            "DV": self.dv,
            "BLOCK_K": power(self.dk),
            "BLOCK_V": power(self.dv),
        }

    @property
    def chunk_queries(self) -> int:
        """Queries that a tile may hold: those of a chunk, or of all rows that share a dictionary."""
        if self.shared:
            return self.b * self.s * self.group
        return (self.length if self.traced else min(self.length, self.t)) * self.group

    @property
    def chunk_tokens(self) -> int:
        """Tokens likewise."""
        return self.b * self.s if self.shared else min(self.length, self.s)

    def tile(self, kernel: str, rows: int, columns: int) -> Tile:
        """The tile of one of the call's kernels, see `tiles.tile`."""
        return tile(kernel, self.dtype, self.head, (rows, columns), plain=self.plain, device=self.device)

    def tiles(self, rows: int, group: int, chunk: int) -> int:
        """Tiles of so many rows, `group` at each position, of all chunks before `chunk`."""
        if self.shared:
            return -(-self.b * self.s * group // rows)
        in_chunk = -(-self.length * group // rows)
        if chunk < self.chunks:
            return chunk * in_chunk
        last = self.s - (self.chunks - 1) * self.length
        return (self.chunks - 1) * in_chunk + -(-last * group // rows)

    @property
    def wave(self) -> int:
        """Chunks whose versions are listed at a time: the list takes no more memory than keys and values."""
        return max(1, min(self.chunks, self.t * (self.dk + self.dv) // (2 * self.n)))

    def arrivals(self) -> Tensor:
        """`[B, full_chunks]` int64, valid tokens of every full chunk."""
        valid = self.valid()
        if valid is None:
            return torch.full((self.b, self.full_chunks), self.length, dtype=torch.int64, device=self.device)
        return valid.view(self.b, self.full_chunks, self.length).sum(-1)

    def valid(self) -> Tensor | None:
        """`[B, full_chunks L]` bool, valid positions of full chunks; None if all are."""
        mask = self.x.mask
        if mask is None and not self.p:
            return None
        if mask is None:
            mask = torch.ones(self.b, self.t, dtype=torch.bool, device=self.device)
        return torch.cat([self.x.state.pending_mask.expand(self.b, self.p), mask], 1)[
            :, : self.full_chunks * self.length
        ]

    def targets(self, arrivals: Tensor) -> Tensor:
        """`[B, full_chunks]` int32, slots that should be in use after every chunk."""
        return target_size(self.x.state.tokens[:, None] + arrivals.cumsum(1), self.options).int()

    def ranks(self) -> Tensor | None:
        """`[B, G, full_chunks L]` int32, in which order tokens seed by chance; None where it does not decide."""
        if self.options.seeds != "random":
            return None
        valid = self.valid()
        if valid is None:
            valid = torch.ones(self.b, self.full_chunks * self.length, dtype=torch.bool, device=self.device)
        return random_ranks(valid, self.x.state.tokens, self.g, self.options.seed)


def random_ranks(valid: Tensor, tokens: Tensor, heads: int, seed: int) -> Tensor:
    """A random int32 `[B, G, m]` for every position `[B, m]`, from the number of valid tokens before it.

    Args:
        valid: `[B, m]` bool.
        tokens: `[B]` or `[1]` valid tokens before these.
        heads: G.
        seed: of the options.
    """
    position = (tokens[:, None] + valid.cumsum(-1) - 1)[:, None]
    row = torch.arange(valid.shape[0], device=valid.device)[:, None, None]
    head = torch.arange(heads, device=valid.device)[:, None]
    bits = counter_hash(seed, position, position >> 32, row, head)
    return (bits - 2**31).int().contiguous()
