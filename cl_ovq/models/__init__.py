"""Networks and their heads."""

from cl_ovq.models.build import MIXED, MODELS, build_model, check_model, freeze_encoder
from cl_ovq.models.classifier import PatchTransformer
from cl_ovq.models.sequence import SequenceModel

__all__ = [
    "MIXED",
    "MODELS",
    "PatchTransformer",
    "SequenceModel",
    "build_model",
    "check_model",
    "freeze_encoder",
]
