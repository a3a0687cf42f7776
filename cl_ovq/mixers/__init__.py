"""Sequence mixers, one file each."""

from cl_ovq.mixers.base import MIXERS, Mixer, auxiliary_losses, build_mixers, layer_mixers, sharpened
from cl_ovq.mixers.dictionary import PersistentDictionary, dictionaries
from cl_ovq.mixers.gated_delta import GatedDeltaNet
from cl_ovq.mixers.gated_slot import GatedSlotAttention
from cl_ovq.mixers.linear import LinearAttention
from cl_ovq.mixers.mamba2 import Mamba2
from cl_ovq.mixers.ovq import OVQAttention
from cl_ovq.mixers.sliding_window import SlidingWindowAttention
from cl_ovq.mixers.softmax import SoftmaxAttention
from cl_ovq.mixers.vq import VQAttention

__all__ = [
    "MIXERS",
    "GatedDeltaNet",
    "GatedSlotAttention",
    "LinearAttention",
    "Mamba2",
    "Mixer",
    "OVQAttention",
    "PersistentDictionary",
    "SlidingWindowAttention",
    "SoftmaxAttention",
    "VQAttention",
    "auxiliary_losses",
    "build_mixers",
    "dictionaries",
    "layer_mixers",
    "sharpened",
]
