"""Encoders: pretrained networks, frozen or tuned, between a stream's images or texts and a model."""

# The parts are imported in the order in which they are listed.
from cl_ovq.encoders.efficientnet import find_efficientnet_lite0  # isort: skip
from cl_ovq.encoders.torchvision_models import find_torchvision  # isort: skip
from cl_ovq.encoders.timm_models import find_timm  # isort: skip
from cl_ovq.encoders.huggingface import find_huggingface  # isort: skip
from cl_ovq.encoders.own_module import find_own_module  # isort: skip
from cl_ovq.encoders.hashed_ngrams import find_hashed_ngrams  # isort: skip
from cl_ovq.encoders.huggingface_text import find_huggingface_text  # isort: skip
from cl_ovq.encoders.base import ENCODERS, AnyEncoderOptions, Built, Encoder, EncoderOptions, Source, encoder_of
from cl_ovq.encoders.network import EncodedModel, EncoderNetwork

__all__ = [
    "ENCODERS",
    "AnyEncoderOptions",
    "Built",
    "EncodedModel",
    "Encoder",
    "EncoderNetwork",
    "EncoderOptions",
    "Source",
    "encoder_of",
    "find_efficientnet_lite0",
    "find_hashed_ngrams",
    "find_huggingface",
    "find_huggingface_text",
    "find_own_module",
    "find_timm",
    "find_torchvision",
]
