"""A network that learns classes in its state: weights are learned beforehand, and rest while it learns.

After Lee, Son and Kim 2023 (arXiv 2310.11952), who recast continual learning as sequence modelling: a stream of samples
is a sequence of tokens, each a sample beside the code of its label. Letters: `B` sequences, `T` tokens, `D` features of
a sample, `V` of a label's code, `C` classes.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.mixers import Mixer, sharpened
from cl_ovq.mixers.state import repeated
from cl_ovq.models.block import Block


class InContextLearner(nn.Module):
    """Reads samples with their labels' codes, and tells the code of a sample without one.

    Args:
        features: D, of a sample, which has length one.
        code: V, of a label, which has length one.
        width: features per token.
        mixers: the sequence mixer of each block; all that is learned from the sequence is in their states.
        hidden: hidden features of the MLPs.
        log_length_scaling: whether attention over all tokens gets sharper in sequences longer than those that the
            weights were learned on: its inverse temperature grows as the logarithm of the length (Chiang and Cholak
            2022), so that more tokens do not drown the one that matters.

    Buffers:
        trained_length: most tokens of an episode that the weights were learned on, int64; 0 before.
        mean, deviation: `[1, D]`, of the features that the weights were learned on, by which others of the same encoder
            are standardised; the latter is zero where each stream is standardised by itself.
    """

    trained_length: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        *,
        features: int,
        code: int,
        width: int,
        mixers: list[Mixer],
        hidden: int,
        log_length_scaling: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        self.code = code
        self.embedding = nn.Linear(features + code, width)
        self.blocks = nn.ModuleList(Block(width=width, mixer=mixer, hidden=hidden, dropout=0.0) for mixer in mixers)
        for mixer in mixers:
            mixer.start_queries_as_keys()  # else pretraining stays at chance from some seeds, softmax attention's too
        # Without it a question is most like itself, and what it would learn from that is nothing: attention cannot be
        # sharp then, and classes of many modes blur.
        self.question = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, code)
        self.temperature = nn.Parameter(torch.tensor(8.0))
        self.log_length_scaling = log_length_scaling
        self.register_buffer("trained_length", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(1, features))
        self.register_buffer("deviation", torch.zeros(1, features))

    def forward(
        self, x: Tensor, codes: Tensor | None, states: list[Any] | None = None, *, return_state: bool = False
    ) -> tuple[Tensor, list[Any]]:
        """Read tokens, in order.

        Args:
            x: samples `[B, T, D]`.
            codes: of their labels, `[B, T, V]`; zero for a sample whose label is asked for; None if all are.
            states: what the last call returned; None to begin.
            return_state: whether states are returned; otherwise they are None.

        Returns:
            What the labels' codes are taken to be, `[B, T, V]`, and the state of each block.
        """
        h = self._embed(x, codes)
        after = []
        for number, block in enumerate(self.blocks):
            h, state = block(h, state=None if states is None else states[number], return_state=return_state)
            after.append(state)
        return self.head(self.norm(h)), after

    def ask(self, x: Tensor, states: list[Any] | None) -> Tensor:
        """Tell the codes of samples without labels, each of which reads a copy of the state, and is seen by no other.

        Args:
            x: samples `[B, Q, D]`.
            states: of B sequences, as `forward` returned them; None before their first sample.

        Returns:
            `[B, Q, V]`.
        """
        batch, questions, _ = x.shape
        copies = None if states is None else [repeated(state, questions) for state in states]
        told, _ = self(x.flatten(0, 1)[:, None], None, copies)
        return told.view(batch, questions, -1)

    def _embed(self, x: Tensor, codes: Tensor | None) -> Tensor:
        """Return tokens `[B, T, width]`."""
        if codes is None:
            codes = x.new_zeros(*x.shape[:2], self.code)
        # Entries of vectors of length one become as large as a layer's are wont to be.
        h = self.embedding(torch.cat([math.sqrt(self.features) * x, math.sqrt(self.code) * codes], -1))
        return h + self.question * (1 - codes.norm(dim=-1, keepdim=True))

    def logits(self, told: Tensor, codes: Tensor) -> Tensor:
        """Return logits `[B, T, C]` of classes with codes `[B, C, V]`, or `[C, V]`, given what `forward` told.

        By its direction alone: with its length too, pretraining stays at chance for long, or for good, from some seeds.
        """
        return self.temperature * functional.normalize(told, dim=-1) @ codes.mT

    def at_length(self, tokens: int) -> AbstractContextManager[None]:
        """Make passes in a `with` block those of a sequence of so many tokens, see `log_length_scaling`."""
        trained = int(self.trained_length)
        longer = self.log_length_scaling and trained > 1 and tokens > trained
        return sharpened(self, math.log(tokens) / math.log(trained) if longer else 1.0)

    def state_bytes(self, tokens: int) -> int:
        """Return the bytes of the states of all blocks after so many tokens."""
        return sum(mixer.state_bytes(tokens) for mixer in self.modules() if isinstance(mixer, Mixer))


class ValueLearner(InContextLearner):
    """Reads samples with vectors that belong to them, and tells the vector of a sample without one.

    What is a label's code for `InContextLearner` is the vector itself, `[B, T, V]`: NaN for a sample whose vector is
    asked for. Neither samples nor vectors have length one: how large they are says something.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.register_parameter("temperature", None)  # of logits, which there are none of

    def _embed(self, x: Tensor, codes: Tensor | None) -> Tensor:
        if codes is None:
            codes = x.new_full((*x.shape[:2], self.code), torch.nan)
        asked = codes.isnan()
        return self.embedding(torch.cat([x, codes.masked_fill(asked, 0.0)], -1)) + self.question * asked[..., :1]


def random_codes(*shape: int, generator: torch.Generator) -> Tensor:
    """Draw codes of length one, `[..., V]`."""
    return functional.normalize(torch.randn(*shape, generator=generator), dim=-1)
