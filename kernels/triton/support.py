"""What the Triton kernels serve, and in which words they say no. Does not import Triton."""

import importlib.util
import os

import torch
from torch import Tensor

from kernels.options import DictionaryOptions
from kernels.triton.observing import is_recording

SEEDS_SERVED = ("spread", "random")
LARGEST_HEAD = 128
MOST_LINES = 65535  # of a launch's second dimension


def interpreted() -> bool:
    """Whether Triton's interpreter runs kernels, on any device; decided when Triton is first imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


def on_gpu(x: Tensor) -> bool:
    """Whether a tensor is on a GPU, or has no data and launches on one are recorded."""
    return x.device.type == "cuda" or (x.device.type == "meta" and is_recording())


def unserved(q: Tensor, k: Tensor, v: Tensor, options: DictionaryOptions) -> str | None:
    """Why the kernels cannot serve a call, in one line; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not on_gpu(q) and q.device.type != "meta" and not interpreted():  # on `meta` there is nothing to run
        return (
            f"it needs tensors on a GPU, these are on {q.device.type} "
            "(or set TRITON_INTERPRET=1 before Python starts, to run kernels without one, slowly)"
        )
    return unserved_options(options) or unserved_shapes(q, k, v)


def unserved_options(options: DictionaryOptions) -> str | None:
    """The same, for options alone."""
    if options.seeds not in SEEDS_SERVED:
        return f"seeds {options.seeds!r} choose one token after the other; served: {', '.join(SEEDS_SERVED)}"
    if options.growth == "recycle":
        return "growth 'recycle' unites slots; served: every other growth"
    if options.value_weight > 0:
        return f"value_weight {options.value_weight} compares values too; served: 0"
    return None


def unserved_shapes(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """The same, for tensors alone."""
    for x in (q, k, v):
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"inputs are {x.dtype}; served: float32, bfloat16, float16"
    if not 0 < k.shape[-1] <= LARGEST_HEAD or not 0 < v.shape[-1] <= LARGEST_HEAD:
        return f"head sizes are {k.shape[-1]} and {v.shape[-1]}; served: 1 to {LARGEST_HEAD}"
    if k.shape[0] * k.shape[2] > MOST_LINES:
        return f"there are {k.shape[0] * k.shape[2]} rows times heads; served: up to {MOST_LINES}"
    return None
