"""What the native library is given of a call: see `call_of` in call.h."""

import math
from typing import Any

from torch import Tensor

from kernels.options import LEARNING_RATES, READ_OUTS, DictionaryOptions
from kernels.scan import segment_length
from kernels.schema import Arguments


def call_arguments(x: Arguments, full_chunks: int, chunk: int | None = None) -> tuple[Any, ...]:
    """The arguments that its functions share.

    Args:
        x: the call; without query heads nothing is read.
        full_chunks: chunks that update the dictionary.
        chunk: tokens of each; those of the options if None.
    """
    options, state = x.options, x.state.detach().expand(x.k.shape[0])
    counts, size = (y if y[:1].is_contiguous() else y.contiguous() for y in (state.counts, state.size))
    tokens = (_rows(state.pending_keys), _rows(state.pending_values), state.pending_mask)
    return (
        *(_rows(tensor) for tensor in (x.q, x.k, x.v)),
        x.beta.detach().float().contiguous(),
        None if x.slot_bias is None else x.slot_bias.detach().float().contiguous(),
        x.mask,
        [counts, _rows(state.keys), _rows(state.values), size, *tokens],
        sizes_of(options, full_chunks, chunk),
        (options.rate, options.novelty_threshold if options.growth == "novelty" else math.inf),
    )


def sizes_of(options: DictionaryOptions, full_chunks: int, chunk: int | None = None) -> tuple[int, ...]:
    """Sizes and options of a call as whole numbers; see `call_arguments`."""
    return (
        *(chunk or options.chunk_size, full_chunks, READ_OUTS.index(options.read_out)),
        *(LEARNING_RATES.index(options.learning_rate), options.assignment == "all", options.query_norm),
        segment_length(options),
    )


def _rows(x: Tensor) -> Tensor:
    """In fp32, features side by side; the layout may be any otherwise."""
    x = x.detach().float()
    return x if x.stride(-1) == 1 else x.contiguous()
