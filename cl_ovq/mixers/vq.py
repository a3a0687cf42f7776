"""Vector-quantized attention with a codebook learned in training: Transformer-VQ (Lingle 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.errors import UserError
from cl_ovq.mixers.base import MIXERS, is_recomputed, statistics
from cl_ovq.mixers.dictionary_options import ChunkOptions
from cl_ovq.mixers.projected import Memory, ProjectedMixer
from cl_ovq.mixers.scalable import ScalableOptions, log_length
from cl_ovq.options import COUNT, option
from kernels.numerics import normalise
from kernels.state import statistics_dtype

DEAD = 0.05  # share of a code's fair part of the tokens below which it starts again at some key


class VQAttention(ProjectedMixer):
    """Softmax attention whose keys are replaced by the nearest code of a learned codebook, in linear time.

    With every key one of S codes, the past is the count and the value mean of each code: a query sees code s with
    logit `beta q.c_s + log n_s`, which is exactly the attention over all quantized keys. Queries and keys are
    normalised and beta is learned per head, as in `ovq`, so that the two differ in their dictionaries alone.

    The codebook is the running mean of the keys that chose each code (van den Oord et al. 2017), in training mode
    only; it starts at keys of the first batch, and codes that hardly any key chooses start again at keys of the
    current one (Dhariwal et al. 2020). It is fp32, or fp64 where the layer is. Gradients pass a key's quantization
    straight through, within a chunk; across chunks a key learns from the commitment loss alone.

    Args:
        width: features per token (C).
        heads: attention heads (H); divides `width`.
        codebook_size: codes of a head's codebook (S).
        chunk_size: tokens that are compared with each other before they are cached; of no consequence but for
            gradients and speed.
        decay: of the running means, per training step.
        commitment: weight of the mean squared distance of keys to their codes in the loss.
        convolution: tokens that a short causal convolution of queries, keys and values sees; 0 for none.
        scalable_softmax: whether logits grow with the logarithm of the tokens that a query sees, see `scalable`.
    """

    codebook: Tensor
    usage: Tensor
    sums: Tensor
    started: Tensor

    EXACT = True

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        codebook_size: int,
        chunk_size: int = 64,
        decay: float = 0.99,
        commitment: float = 1e-2,
        convolution: int = 0,
        scalable_softmax: bool = False,
    ) -> None:
        super().__init__(width=width, features=3 * width, output=width, convolution=convolution)
        self.heads = heads
        self.head_dim = width // heads
        self.codebook_size = codebook_size
        self.chunk_size = chunk_size
        self.decay = decay
        self.commitment = commitment
        self.scalable_softmax = scalable_softmax
        self.log_beta = nn.Parameter(torch.full((heads,), 0.5 * math.log(self.head_dim)))
        dtype = statistics_dtype(torch.get_default_dtype())
        size = (heads, codebook_size, self.head_dim)
        self.register_buffer("codebook", normalise(torch.randn(size, dtype=dtype)))  # [H, S, D]
        self.register_buffer("usage", torch.zeros(size[:2], dtype=dtype))  # running mean of a step's tokens, [H, S]
        self.register_buffer("sums", torch.zeros(size, dtype=dtype))  # and of the sum of their keys
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def mix(self, features: Tensor, x: Tensor, mask: Tensor | None, memory: Memory | None) -> tuple[Tensor, Memory]:
        """Attend; the memory is the tokens `[B, H, S]` and the sum of values `[B, H, S, D]` of each code."""
        batch, tokens, _ = features.shape
        exact = torch.promote_types(features.dtype, torch.float32)
        q, k, v = features.to(exact).view(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = normalise(q) * (self.log_beta.exp() * self.sharpness)[:, None, None], normalise(k)
        valid = torch.ones(batch, tokens, dtype=torch.bool, device=x.device) if mask is None else mask
        if self.training and is_recomputed():
            raise UserError(
                "VQAttention learns its codebook in the forward pass, which activation checkpointing runs twice: "
                "exclude the layer from checkpointing, or set it to evaluation mode"
            )
        if self.training and not self.started:
            self._start(k.detach(), valid)
        codebook = self.codebook.to(exact, copy=True)  # learning, which changes it, comes before the backward pass
        if memory is None:
            counts = v.new_zeros(batch, self.heads, self.codebook_size)
            sums = v.new_zeros(batch, self.heads, self.codebook_size, self.head_dim)
        else:
            counts, sums = memory
        if self.scalable_softmax:
            q = q * log_length(counts[:, 0].sum(-1), mask, features)[:, None, :, None]
        outputs, chosen = [], []
        for start in range(0, tokens, self.chunk_size):
            part = slice(start, start + self.chunk_size)
            code = nearest_code(k[:, :, part], codebook)  # [B, H, L]
            chosen.append(code)
            quantized = k[:, :, part] + (codes_of(codebook, code) - k[:, :, part]).detach()
            read = _read(q[:, :, part], quantized, v[:, :, part], codebook, valid[:, part], counts, sums)
            outputs.append(read)
            one_hot = functional.one_hot(code, self.codebook_size).to(exact) * valid[:, None, part, None]
            counts = counts + one_hot.sum(2)
            sums = sums + one_hot.transpose(-1, -2) @ v[:, :, part]
        if not tokens:
            return features.new_zeros(batch, 0, self.heads * self.head_dim), (counts, sums)
        codes = torch.cat(chosen, 2)
        if self.losses is not None and self.training:
            distance = (k - codes_of(codebook, codes)).square().sum(-1) * valid[:, None]
            self.losses.append(self.commitment * distance.sum() / (valid.sum() * self.heads).clamp(min=1))
        if self.training:
            self._learn(k.detach(), codes, valid)
        return torch.cat(outputs, 2).transpose(1, 2).flatten(2).to(features.dtype), (counts, sums)

    def memory_bytes(self, tokens: int) -> int:
        """Return the bytes of counts and value sums; the codebook is a part of the weights."""
        size = torch.promote_types(self.qkv.weight.dtype, torch.float32).itemsize
        return self.heads * self.codebook_size * (1 + self.head_dim) * size

    @torch.no_grad()
    def _start(self, k: Tensor, valid: Tensor) -> None:
        """Put every code at a random key of the batch."""
        if not valid.any():
            return
        self.codebook.copy_(self._random_keys(k, valid))
        self.started.fill_(True)
        # As if each had been chosen by its fair part of this batch; the running means go on from there.
        fair = valid.sum() / self.codebook_size
        self.usage.copy_(fair)
        self.sums.copy_(self.codebook * fair)

    @torch.no_grad()
    def _learn(self, k: Tensor, codes: Tensor, valid: Tensor) -> None:
        """Move the codebook towards the keys `[B, H, T, D]` that chose each code."""
        if not valid.any():
            return
        one_hot = functional.one_hot(codes, self.codebook_size).to(k.dtype) * valid[:, None, :, None]  # [B, H, T, S]
        usage, sums = one_hot.sum((0, 2)), torch.einsum("bhts,bhtd->hsd", one_hot, k)
        usage = self.decay * self.usage + (1 - self.decay) * usage
        sums = self.decay * self.sums + (1 - self.decay) * sums
        fair = valid.sum() / self.codebook_size
        dead = (usage < DEAD * fair)[..., None]
        sums = torch.where(dead, self._random_keys(k, valid) * fair, sums)
        usage = torch.where(dead[..., 0], fair, usage)
        self.usage.copy_(usage)
        self.sums.copy_(sums)
        self.codebook.copy_(self.sums / self.usage[..., None])

    def _random_keys(self, k: Tensor, valid: Tensor) -> Tensor:
        """Draw a valid key for each code, `[H, S, D]`."""
        rows, times = valid.nonzero(as_tuple=True)
        drawn = torch.randint(len(rows), (self.codebook_size,), device=rows.device)
        return k[rows[drawn], :, times[drawn]].transpose(0, 1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VQAttention:
        """Move or cast; the codebook and its running means are never narrower than fp32."""
        kept = {name: statistics(self.get_buffer(name), fn) for name in ("codebook", "usage", "sums", "started")}
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            setattr(self, name, tensor)
        return self

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        size = f"heads={self.heads}, head_dim={self.head_dim}, codebook_size={self.codebook_size}"
        return f"{size}, chunk_size={self.chunk_size}"


def codes_of(codebook: Tensor, codes: Tensor) -> Tensor:
    """Return the codes `[B, H, T, D]` of a codebook `[H, S, D]` at indices `[B, H, T]`."""
    return codebook[torch.arange(len(codebook), device=codes.device)[:, None], codes]


def _read(
    q: Tensor, quantized: Tensor, v: Tensor, codebook: Tensor, valid: Tensor, counts: Tensor, sums: Tensor
) -> Tensor:
    """Attend from a chunk's queries to cached codes and to the quantized keys of the chunk, in one softmax."""
    tokens = v.shape[2]
    cached = q @ codebook.transpose(-1, -2) + counts[:, :, None].log()  # [B, H, L, S]
    visible = torch.ones(tokens, tokens, dtype=torch.bool, device=v.device).tril() & valid[:, None, None, :]
    own = (q @ quantized.transpose(-1, -2)).masked_fill(~visible, -torch.inf)
    logits = torch.cat((cached, own), -1)
    nothing = (counts.sum(-1) == 0)[..., None] & ~visible.any(-1)  # [B, H, L]: then all logits are minus infinity
    weights = logits.masked_fill(nothing[..., None], 0.0).softmax(-1) * ~nothing[..., None]
    means = sums / counts.clamp(min=1)[..., None]
    return weights[..., : codebook.shape[1]] @ means + weights[..., codebook.shape[1] :] @ v


def nearest_code(k: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the nearest code of each key: k `[B, H, T, D]`, codebook `[H, S, D]`, index `[B, H, T]`."""
    with torch.no_grad():
        return (k @ codebook.transpose(-1, -2) - 0.5 * codebook.square().sum(-1)[:, None]).argmax(-1)


@dataclass
class VQOptions(ScalableOptions):
    """The options of vector-quantized attention."""

    codebook_size: int = option(512, "codes per head", minimum=1, maximum=COUNT)
    code_decay: float = option(
        0.99, "decay per training step of the running means that form the codebook", minimum=0, maximum=0.9999
    )
    commitment: float = option(1e-2, "weight of the commitment loss (distance of keys to their codes)", minimum=0)


@MIXERS.enter(
    "vq",
    "attention over keys quantized by a codebook learned in training: Transformer-VQ (Lingle 2023)",
    options=VQOptions,
    sections={"dictionary": ChunkOptions},
    sharpens=True,
)
def build_vq(options: VQOptions, dictionary: ChunkOptions) -> VQAttention:
    """Build vector-quantized attention."""
    return VQAttention(
        width=options.width,
        heads=options.heads,
        codebook_size=options.codebook_size,
        chunk_size=dictionary.chunk_size,
        decay=options.code_decay,
        commitment=options.commitment,
        convolution=options.convolution,
        scalable_softmax=options.scalable_softmax,
    )
