"""Networks and their heads."""

# The parts are imported in the order in which they are listed.
from cl_ovq.models.classifier import PatchTransformer  # isort: skip
from cl_ovq.models.perceptron import Perceptron  # isort: skip
from cl_ovq.models.resnet import ResNet  # isort: skip
from cl_ovq.models.fixed import FixedFeatureModel  # isort: skip
from cl_ovq.models.sequence import SequenceModel  # isort: skip
from cl_ovq.models.memory import MemoryHead  # isort: skip
from cl_ovq.models.memory_options import MemoryOptions  # isort: skip
from cl_ovq.models.base import HEADS, MODELS, Model, ModelContext
from cl_ovq.models.build import build_model, check_model, check_stack
from cl_ovq.models.freezing import freeze_encoder
from cl_ovq.models.gradient_free import GradientFreeHead

__all__ = [
    "HEADS",
    "MODELS",
    "FixedFeatureModel",
    "GradientFreeHead",
    "MemoryHead",
    "MemoryOptions",
    "Model",
    "ModelContext",
    "PatchTransformer",
    "Perceptron",
    "ResNet",
    "SequenceModel",
    "build_model",
    "check_model",
    "check_stack",
    "freeze_encoder",
]
