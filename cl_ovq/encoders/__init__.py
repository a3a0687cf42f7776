"""Encoders: pretrained networks, frozen or tuned, between a stream's images and a model."""

# The parts are imported in the order in which they are listed.
from cl_ovq.encoders.efficientnet import find_efficientnet_lite0  # isort: skip
from cl_ovq.encoders.torchvision_models import find_torchvision  # isort: skip
from cl_ovq.encoders.timm_models import find_timm  # isort: skip
from cl_ovq.encoders.huggingface import find_huggingface  # isort: skip
from cl_ovq.encoders.own_module import find_own_module  # isort: skip
from cl_ovq.encoders.base import ENCODERS, Built, Encoder, EncoderOptions, Source, encoder_of
from cl_ovq.encoders.network import EncodedModel, EncoderNetwork

__all__ = [
    "ENCODERS",
    "Built",
    "EncodedModel",
    "Encoder",
    "EncoderNetwork",
    "EncoderOptions",
    "Source",
    "encoder_of",
    "find_efficientnet_lite0",
    "find_huggingface",
    "find_own_module",
    "find_timm",
    "find_torchvision",
]
