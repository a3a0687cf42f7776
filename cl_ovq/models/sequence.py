"""The causal model of all sequence streams: tokens or vectors in, an output for every token."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from cl_ovq.errors import UserError
from cl_ovq.mixers import Mixer
from cl_ovq.models.base import MODELS, ModelContext
from cl_ovq.models.block import Block, BlockOptions
from cl_ovq.options import option
from streams import PADDING

if TYPE_CHECKING:
    from streams import SequenceSamples

TOLERANCE = 0.02  # of the number of weights that is asked for


class SequenceModel(nn.Module):
    """Embedding, blocks of mixer and MLP, and a head at every token.

    It adds no positions: what a layer knows of order is its mixer's (short convolution, rotary, decay). Padding is
    masked: it is neither read nor written.

    Args:
        tokens: different tokens that there are; None where a token is a vector.
        features: features of a token that is a vector; None where it is a number.
        outputs: outputs at every token; one output is a number, without an axis of its own.
        width: features per token (C).
        mixers: the sequence mixer of each block.
        hidden: hidden features of the MLPs.
        dropout: share of features dropped after mixer and MLP.
        tied: whether the head is the embedding's transpose; then `outputs` is `tokens`.
    """

    def __init__(
        self,
        *,
        tokens: int | None,
        features: int | None,
        outputs: int,
        width: int,
        mixers: list[Mixer],
        hidden: int,
        dropout: float = 0.0,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.scale = math.sqrt(width) if tied else 1.0
        if tokens is not None:
            self.embedding: nn.Module = nn.Embedding(tokens, width)
            nn.init.normal_(self.embedding.weight, std=1 / self.scale)
        else:
            assert features is not None
            self.embedding = nn.Linear(features, width)
        self.tokens = tokens
        self.blocks = nn.ModuleList(Block(width=width, mixer=mixer, hidden=hidden, dropout=dropout) for mixer in mixers)
        self.norm = nn.LayerNorm(width)
        self.head: nn.Module = nn.Linear(width, outputs, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `[B, T]` or vectors `[B, T, F]` to `[B, T, outputs]`, or `[B, T]` where there is one output."""
        return self.forward_with_state(x)[0]

    def forward_with_state(
        self, x: Tensor, states: list[Any] | None = None, *, return_state: bool = False
    ) -> tuple[Tensor, list[Any]]:
        """Map as `forward` does, going on with sequences that earlier calls began.

        Args:
            x: see `forward`.
            states: what the last call returned, of each block; None to begin.
            return_state: whether states are returned; otherwise they are None.
        """
        mask = None
        if self.tokens is not None:
            valid = x != PADDING
            if not valid.all():
                mask, x = valid, x.clamp(min=0)
        x = self.embedding(x) * self.scale
        after = []
        for number, block in enumerate(self.blocks):
            x, state = block(x, mask=mask, state=None if states is None else states[number], return_state=return_state)
            after.append(state)
        y = self.head(self.norm(x))
        return (y[..., 0] if y.shape[-1] == 1 else y), after

    def state_bytes(self, tokens: int) -> int:
        """Return the bytes of the states of all layers for one sequence of so many tokens."""
        mixers = (module for module in self.modules() if isinstance(module, Mixer))
        return sum(mixer.state_bytes(tokens) for mixer in mixers)


def matching_hidden(build: Callable[[int], nn.Module], parameters: int) -> int:
    """Return the size of the MLPs with which a model has about so many weights.

    Args:
        build: makes the model with MLPs of a given size; the number of its weights is linear in it.
        parameters: weights that are asked for.

    Raises:
        UserError: no size comes within 2 %.
    """
    with torch.random.fork_rng(devices=[]):
        one, two = (count_parameters(build(hidden)) for hidden in (1, 2))
    hidden = max(1, round(1 + (parameters - one) / (two - one)))
    found = one + (hidden - 1) * (two - one)
    if abs(found - parameters) > TOLERANCE * parameters:
        raise UserError(
            f"model.parameters: {parameters} cannot be met within {TOLERANCE:.0%}: with the smallest MLPs this model "
            f"has {one} weights, and {two - one} more for each further hidden feature"
        )
    return hidden


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass
class SequenceModelOptions(BlockOptions):
    """The options of the causal model of sequences."""

    parameters: int | None = option(
        None,
        "total number of weights, for fair comparison of mixers: the MLPs are sized to match it, and "
        "mlp_ratio is ignored",
        minimum=1,
        maximum=10**12,
    )
    tied: bool = option(False, "tie the head to the embedding")


@MODELS.enter(
    "sequence_model",
    "causal sequence model with any mixers and an output at every token (sequence streams)",
    options=SequenceModelOptions,
    reads="sequences",
)
def build_sequence_model(options: SequenceModelOptions, context: ModelContext) -> nn.Module:
    """Build the causal model of sequences."""
    stream = context.stream
    features = cast("SequenceSamples", stream.samples).features
    if options.tied and features is not None:
        raise UserError(f"model.tied: '{stream.name}' has vector inputs, so there is no embedding to tie the head to")

    def build(hidden: int) -> SequenceModel:
        return SequenceModel(
            tokens=stream.n_classes if features is None else None,
            features=features,
            outputs=stream.n_classes,
            width=options.width,
            mixers=context.mixers(options),
            hidden=hidden,
            dropout=options.dropout,
            tied=options.tied,
        )

    if options.parameters is None:
        return build(max(1, round(options.mlp_ratio * options.width)))
    return build(matching_hidden(build, options.parameters))
