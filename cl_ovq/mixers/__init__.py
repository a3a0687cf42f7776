"""Sequence mixers, one file each."""

from cl_ovq.mixers.base import MIXERS, Mixer
from cl_ovq.mixers.dictionary import PersistentDictionary, dictionaries
from cl_ovq.mixers.ovq import OVQAttention
from cl_ovq.mixers.softmax import SoftmaxAttention

__all__ = ["MIXERS", "Mixer", "OVQAttention", "PersistentDictionary", "SoftmaxAttention", "dictionaries"]
