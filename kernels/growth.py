"""How many slots a dictionary has in use after a number of tokens.

Every schedule maps the number of valid tokens seen, an int64 tensor of any shape, to a number of slots of the same
shape. It is a *target*: `target_size` keeps it between one slot (once a token has come) and the capacity, and an
update never takes slots away nor seeds more of them than it has tokens.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kernels.options import DictionaryOptions


def plateau(tokens: Tensor, options: "DictionaryOptions") -> Tensor:
    """`floor(t N / (t + N))`: slope one at the start, half of N after N tokens, never quite N."""
    return tokens * options.capacity // (tokens + options.capacity)


def linear(tokens: Tensor, options: "DictionaryOptions") -> Tensor:
    """`floor(growth_rate * t)`: a fixed number of slots per token until the capacity is reached."""
    return (options.growth_rate * tokens.double()).floor().long()


def every_token(tokens: Tensor, options: "DictionaryOptions") -> Tensor:
    """`t`: every token is a slot until the capacity is reached; with N >= T this is exact softmax attention."""
    return tokens


def dirichlet(tokens: Tensor, options: "DictionaryOptions") -> Tensor:
    """`floor(alpha log(1 + t / alpha))`: the expected clusters of a Dirichlet process of concentration alpha."""
    alpha = options.concentration
    return (alpha * torch.log1p(tokens.double() / alpha)).floor().long()


# `novelty` has the budget of `plateau`; that a seed must also be unlike every old slot depends on the data and is
# decided where seeds are chosen. `recycle` grows as `all` does; how it makes room in a full dictionary depends on the
# data too.
GROWTH: dict[str, Callable[[Tensor, "DictionaryOptions"], Tensor]] = {
    "plateau": plateau,
    "linear": linear,
    "all": every_token,
    "dirichlet": dirichlet,
    "novelty": plateau,
    "recycle": every_token,
}


def target_size(tokens: Tensor, options: "DictionaryOptions") -> Tensor:
    """Slots that should be in use after `tokens` valid tokens.

    Args:
        tokens: int64 tensor of any shape.
        options: names the schedule and its parameters.

    Returns:
        int64 tensor of the same shape, in `[0, N]`, and at least 1 where a token has come.
    """
    return GROWTH[options.growth](tokens, options).clamp(max=options.capacity).maximum(tokens.clamp(max=1))
