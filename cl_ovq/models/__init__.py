"""Networks and their heads."""

from cl_ovq.models.build import MODELS, build_model, check_model
from cl_ovq.models.classifier import PatchTransformer

__all__ = ["MODELS", "PatchTransformer", "build_model", "check_model"]
