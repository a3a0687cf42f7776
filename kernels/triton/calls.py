"""What a call of the operator hands to its kernels, put in order once: arguments by name, tiles, and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.growth import target_size
from kernels.numerics import counter_hash
from kernels.options import DictionaryOptions
from kernels.triton.launch import TYPES, power, precision, widest
from kernels.triton.tiles import Tile, tile


@dataclass(frozen=True)
class Tensors:
    """The operator's tensors; see `kernels.ovq_attention` and `DictionaryState`.

    `mask` is None where all new tokens are valid.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    slot_bias: Tensor | None
    mask: Tensor | None
    counts: Tensor
    keys: Tensor
    values: Tensor
    size: Tensor
    tokens: Tensor
    pending_k: Tensor
    pending_v: Tensor
    pending_mask: Tensor


def _rows(x: Tensor) -> Tensor:
    """With a last dimension that is contiguous, which kernels expect."""
    return x if x.stride(-1) == 1 else x.contiguous()


class Call:
    """One call: sizes, and the arguments that its kernels have in common.

    Letters: `B` rows, `T` new tokens, `P` pending ones, `S = P + T` positions, `H` query heads, `G` key/value heads,
    `N` capacity, `L` chunk, `V = N + closes L` versions, `D = Dk + Dv`.
    """

    def __init__(self, x: Tensors, options: DictionaryOptions, closes: int):
        self.x, self.options, self.closes = x, options, closes
        self.b, self.t, self.h, self.dk = x.q.shape
        self.g, self.dv = x.k.shape[2], x.v.shape[3]
        self.group = self.h // self.g
        self.n, self.length = options.capacity, options.chunk_size
        self.p = x.pending_mask.shape[1]
        self.s = self.p + self.t
        self.chunks = -(-self.s // self.length)
        self.lines = self.b * self.g
        self.versions = self.n + closes * self.length
        self.traced = closes > 0
        self.shared = not self.traced and x.keys.shape[0] == 1 and self.b > 1
        self.dtype = widest(x.q, x.k, x.v)
        self.head = max(self.dk, self.dv)
        self.device = x.q.device
        q, k, v = (_rows(y.detach()) for y in (x.q, x.k, x.v))
        mask = None if x.mask is None else x.mask.contiguous().view(torch.uint8)
        pending = x.pending_mask.contiguous().view(torch.uint8) if self.p else None
        self.inputs: dict[str, Any] = {
            "k": k,
            "v": v,
            "mask": mask,
            "pending_k": x.pending_k.detach().contiguous() if self.p else None,
            "pending_v": x.pending_v.detach().contiguous() if self.p else None,
            "pending_mask": pending,
        }
        self.queries: dict[str, Any] = {
            "q": q,
            "beta": x.beta.detach().float().contiguous(),
            "slot_bias": None if x.slot_bias is None else x.slot_bias.detach().float().contiguous(),
        }
        self.strides: dict[str, Any] = dict(zip(("k_row", "k_token", "k_head"), k.stride(), strict=False)) | dict(
            zip(("v_row", "v_token", "v_head"), v.stride(), strict=False)
        )
        self.query_strides: dict[str, Any] = dict(zip(("q_row", "q_token", "q_head"), q.stride(), strict=False))
        self.sizes: dict[str, Any] = {
            "T": self.t,
            "P": self.p,
            "G": self.g,
            "pending_row": self.p if x.pending_k.shape[0] > 1 else 0,
        }
        self.flags: dict[str, Any] = {
            "MASKED": mask is not None,
            "PENDING": self.p > 0,
            "DTYPE": TYPES[self.dtype],
            "PRECISION": precision(self.device),
            "DK": self.dk,
            "BLOCK_K": power(self.dk),
        }
        options = self.options
        usual = options.learning_rate == "adaptive" and options.seeds == "spread" and options.read_out == "raw"
        self.plain = usual and x.slot_bias is None and not self.p
        self.value_flags: dict[str, Any] = {"DV": self.dv, "BLOCK_V": power(self.dv)}

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
        return tile(kernel, self.dtype, self.head, rows, columns, plain=self.plain, device=self.device)

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
        """`[B, closes]` int64, valid tokens of every chunk that closes."""
        valid = self.valid()
        if valid is None:
            return torch.full((self.b, self.closes), self.length, dtype=torch.int64, device=self.device)
        return valid.view(self.b, self.closes, self.length).sum(-1)

    def valid(self) -> Tensor | None:
        """`[B, closes L]` bool, valid positions of chunks that close; None if all are."""
        x, end = self.x, self.closes * self.length
        if x.mask is None and not self.p:
            return None
        mask = x.mask
        if mask is None:
            mask = torch.ones(self.b, self.t, dtype=torch.bool, device=self.device)
        return torch.cat([x.pending_mask.expand(self.b, self.p), mask], 1)[:, :end]

    def targets(self, arrivals: Tensor) -> Tensor:
        """`[B, closes]` int32, slots that should be in use after every chunk."""
        return target_size(self.x.tokens[:, None] + arrivals.cumsum(1), self.options).int()

    def ranks(self) -> Tensor | None:
        """`[B, G, closes L]` int32, the order in which tokens seed where chance decides; None where it does not."""
        if self.options.seeds != "random":
            return None
        valid = self.valid()
        if valid is None:
            valid = torch.ones(self.b, self.closes * self.length, dtype=torch.bool, device=self.device)
        return random_ranks(valid, self.x.tokens, self.g, self.options.seed)


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
