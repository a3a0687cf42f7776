"""Networks and their heads."""

from cl_ovq.models.build import MODELS, build_model, check_model, freeze_encoder
from cl_ovq.models.classifier import PatchTransformer

__all__ = ["MODELS", "PatchTransformer", "build_model", "check_model", "freeze_encoder"]
