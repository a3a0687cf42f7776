"""Sequence mixers, one file each."""

from cl_ovq.mixers.base import (
    MIXERS,
    AttentionOptions,
    Mixer,
    MixerOptions,
    StackOptions,
    auxiliary_losses,
    build_mixers,
    layer_mixers,
    sharpened,
)
from cl_ovq.mixers.contract import checked_mixers
from cl_ovq.mixers.dictionary import PersistentDictionary, dictionaries, writing
from cl_ovq.mixers.dictionary_options import (
    GROWTHS,
    RATES,
    SCOPES,
    ChunkOptions,
    DictionaryConfig,
    RateOptions,
    SharedOptions,
    operator_options,
    scope_of,
)
from cl_ovq.mixers.gated_delta import GatedDeltaNet
from cl_ovq.mixers.gated_slot import GatedSlotAttention
from cl_ovq.mixers.linear import LinearAttention
from cl_ovq.mixers.mamba2 import Mamba2
from cl_ovq.mixers.ovq import OVQAttention, OVQOptions, seed_dictionaries
from cl_ovq.mixers.sliding_window import SlidingWindowAttention
from cl_ovq.mixers.softmax import SoftmaxAttention
from cl_ovq.mixers.vq import VQAttention

__all__ = [
    "GROWTHS",
    "MIXERS",
    "RATES",
    "SCOPES",
    "AttentionOptions",
    "ChunkOptions",
    "DictionaryConfig",
    "GatedDeltaNet",
    "GatedSlotAttention",
    "LinearAttention",
    "Mamba2",
    "Mixer",
    "MixerOptions",
    "OVQAttention",
    "OVQOptions",
    "PersistentDictionary",
    "RateOptions",
    "SharedOptions",
    "SlidingWindowAttention",
    "SoftmaxAttention",
    "StackOptions",
    "VQAttention",
    "auxiliary_losses",
    "build_mixers",
    "checked_mixers",
    "dictionaries",
    "layer_mixers",
    "operator_options",
    "scope_of",
    "seed_dictionaries",
    "sharpened",
    "writing",
]
