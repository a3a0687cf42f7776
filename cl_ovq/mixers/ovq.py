"""Online vector-quantized attention as a layer."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cl_ovq.errors import UserError
from cl_ovq.mixers.base import MIXERS, Mixer
from cl_ovq.mixers.convolution import ShortConvolution
from cl_ovq.mixers.dictionary import PersistentDictionary
from cl_ovq.mixers.dictionary_options import DictionaryConfig, SharedOptions, operator_options
from cl_ovq.mixers.scalable import ScalableOptions, log_length
from cl_ovq.options import WIDEST, option
from cl_ovq.seeding import derive_seed
from kernels import IMPLEMENTATIONS, DictionaryOptions, DictionaryState, ovq_attention
from kernels.numerics import normalise


class OVQState(NamedTuple):
    """What an `OVQAttention` needs to go on with its sequences.

    Attributes:
        dictionary: the operator's state.
        past: the last inputs of the short convolution, `[B, size - 1, C']`; None without one.
    """

    dictionary: DictionaryState
    past: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.dictionary.nbytes + (0 if self.past is None else self.past.nbytes)


class OVQAttention(Mixer):
    """Attention over a dictionary that is learned during the forward pass (Alonso, Figliolia, Millidge 2026).

    Each head has a learned inverse temperature `beta`, which starts at the root of the head's size.

    Args:
        width: features per token (C).
        heads: query heads (H).
        options: the operator's options (capacity N, chunk size L, growth, ...).
        key_value_heads: heads of keys and values (G), and so dictionaries; H if None. Divides `heads`: each serves
            `H / G` query heads (grouped-query attention, Ainslie et al. 2023).
        head_dim: features of a query, key or value (D); `width / heads` if None.
        convolution: tokens that a short causal convolution of queries, keys and values sees; 0 for none.
        persistent: whether all sequences share one dictionary that outlives them (`layer.dictionary`); it is written by
            `layer.dictionary.write()`, not by the forward pass. Otherwise every sequence learns its own.
        dictionary_weight: tokens that a shared dictionary counts for beside a sequence's own, at first: each head
            learns its own. If None it counts for all tokens that were written.
        half_life: of a shared dictionary's counts, see `PersistentDictionary`.
        sums: whether a shared dictionary keeps sums by task, see `PersistentDictionary`.
        scalable_softmax: whether a query's inverse temperature grows with the logarithm of the tokens that it sees, see
            `scalable`; with the read-outs `raw` and `unit`.
        implementation: of the operator: `auto`, `reference`, `chunked` or `triton`.

    Raises:
        ValueError: sizes do not divide each other, or the read-out `gmr` is to be scalable.

    A shared dictionary is the initial state of every sequence, and what a sequence adds to it in closed chunks is
    private and gone afterwards. Short sequences are best read whole (`chunk_size` at least their length). Its counts
    grow with every write, so that by the definition (`dictionary_weight` None) it soon outweighs the few tokens of the
    sequence itself; a weight keeps the balance between memory and sequence whatever has been written.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        options: DictionaryOptions,
        key_value_heads: int | None = None,
        head_dim: int | None = None,
        convolution: int = 0,
        persistent: bool = False,
        dictionary_weight: float | None = 1.0,
        half_life: int | None = None,
        sums: bool = False,
        scalable_softmax: bool = False,
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        if head_dim is None and width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}: set head_dim, or another number of heads")
        self.heads = heads
        self.key_value_heads = key_value_heads or heads
        if heads % self.key_value_heads:
            raise ValueError(f"key_value_heads={key_value_heads} does not divide heads={heads}")
        self.head_dim = head_dim or width // heads
        if scalable_softmax and options.read_out == "gmr":
            raise ValueError(
                "scalable_softmax requires the read-out raw or unit: with gmr a query's length is not a temperature"
            )
        self.scalable_softmax = scalable_softmax
        if scalable_softmax:
            options = dataclasses.replace(options, query_norm=False)
        self.options = options
        self.implementation = implementation
        features = (heads + 2 * self.key_value_heads) * self.head_dim
        self.qkv = nn.Linear(width, features, bias=False)
        self.convolution = ShortConvolution(features, convolution) if convolution else None
        self.out = nn.Linear(heads * self.head_dim, width, bias=False)
        self.log_beta = nn.Parameter(torch.full((heads,), 0.5 * math.log(self.head_dim)))
        self.dictionary = (
            PersistentDictionary(
                heads=self.key_value_heads,
                key_dim=self.head_dim,
                value_dim=self.head_dim,
                options=options,
                half_life=half_life,
                sums=sums,
            )
            if persistent
            else None
        )
        self.log_weight = (
            nn.Parameter(torch.full((heads,), math.log(dictionary_weight)))
            if persistent and dictionary_weight is not None
            else None
        )

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        state: OVQState | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, OVQState | None]:
        """Mix tokens; see `Mixer.forward`. The state is an `OVQState`."""
        initial, past = (None, None) if state is None else state
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)  # before the weights: what a masked token holds may be NaN
        qkv = self.qkv(x)  # [B, T, (H + 2 G) D]
        if self.convolution is not None:
            qkv, past = self.convolution(qkv, past)
        split = (self.heads, self.key_value_heads, self.key_value_heads)
        q, k, v = qkv.unflatten(-1, (-1, self.head_dim)).split(split, dim=2)  # [B, T, H or G, D]
        bias = None
        if self.dictionary is not None:
            if initial is None:
                initial = self.dictionary.state
            if self.log_weight is not None:
                held = initial.counts[0].sum(-1).clamp(min=1)  # [G], tokens that the dictionary's counts stand for
                bias = self.log_weight - held.repeat_interleave(self.heads // self.key_value_heads).log()
            self.dictionary.observe(k, v, mask, training=self.training)
        if self.scalable_softmax:
            before = 0 if initial is None else initial.tokens + initial.pending_mask.sum(-1)
            q = normalise(q) * log_length(before, mask, q)[..., None, None]
        y, final = ovq_attention(
            q,
            k,
            v,
            self.log_beta.exp() * self.sharpness,
            self.options,
            mask=mask,
            initial_state=initial,
            slot_bias=bias,
            output_final_state=return_state,
            implementation=self.implementation,
        )
        return self.out(y.flatten(2)), OVQState(final, past) if final is not None else None

    @torch.no_grad()
    def start_queries_as_keys(self) -> None:
        """Give queries the weights of keys, those that share a head's keys all the same; see `Mixer`."""
        weight = self.qkv.weight.unflatten(0, (-1, self.head_dim))  # [H + 2 G, D, C]
        keys = weight[self.heads : self.heads + self.key_value_heads]
        weight[: self.heads] = keys.repeat_interleave(self.heads // self.key_value_heads, 0)

    def state_bytes(self, tokens: int) -> int:
        """Return the bytes of a sequence's state; all that depends on `tokens` is the open chunk."""
        size, dtype = self.head_dim, self.qkv.weight.dtype
        state = DictionaryState.empty(
            (1, self.key_value_heads, self.options.capacity, size, size), dtype, device="meta"
        )
        pending = tokens % self.options.chunk_size
        past = 0 if self.convolution is None else (self.convolution.size - 1) * self.qkv.out_features * dtype.itemsize
        return state.nbytes + pending * (2 * self.key_value_heads * size * state.keys.element_size() + 1) + past

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        heads = f"heads={self.heads}, key_value_heads={self.key_value_heads}, head_dim={self.head_dim}"
        return f"{heads}, {self.options}"


def seed_dictionaries(model: nn.Module, seed: int) -> None:
    """Give every OVQ layer whose slots begin at random tokens a random seed of its own, derived from the run's.

    Args:
        model: any model.
        seed: of the run.
    """
    layers = [module for module in model.modules() if isinstance(module, OVQAttention)]
    for number, layer in enumerate(layers):
        if layer.options.seeds in ("random", "kmeans++"):  # others draw nothing, and would compile anew for each seed
            layer.options = dataclasses.replace(layer.options, seed=derive_seed(seed, f"dictionary/{number}"))
            if layer.dictionary is not None:
                layer.dictionary.options = layer.options


@dataclass
class OVQOptions(ScalableOptions):
    """The options of an OVQ layer beside those of its dictionary."""

    key_value_heads: int | None = option(
        None,
        "number of key and value heads, and so of dictionaries; must divide heads; null for as many as heads",
        minimum=1,
        maximum=WIDEST,
    )
    implementation: str = option("auto", "implementation of the operator", choices=IMPLEMENTATIONS)


@MIXERS.enter(
    "ovq",
    "online vector-quantized attention (Alonso et al. 2026): dictionary learned in the forward pass",
    options=OVQOptions,
    sections={"dictionary": DictionaryConfig},
    has_dictionary=True,
    sharpens=True,
)
def build_ovq(options: OVQOptions, dictionary: DictionaryConfig) -> OVQAttention:
    """Build an OVQ layer.

    Raises:
        UserError: a scalable softmax with the read-out `gmr`.
    """
    if options.scalable_softmax and dictionary.read_out == "gmr":
        raise UserError("scalable_softmax requires dictionary.read_out=raw or unit, not gmr")
    shared = dictionary if isinstance(dictionary, SharedOptions) else None
    return OVQAttention(
        width=options.width,
        heads=options.heads,
        options=operator_options(dictionary),
        key_value_heads=options.key_value_heads,
        convolution=options.convolution,
        dictionary_weight=shared.weight if shared else None,
        half_life=shared.half_life if shared else None,
        sums=shared is not None and shared.sums,
        scalable_softmax=options.scalable_softmax,
        persistent=shared is not None,
        implementation=options.implementation,
    )
