"""What native code serves, and in which words it says no."""

import torch
from torch import Tensor

from kernels.options import DictionaryOptions
from kernels.state import statistics_dtype


def unserved(q: Tensor, k: Tensor, v: Tensor, options: DictionaryOptions) -> str | None:
    """Why native code cannot serve a call, in words; None if it can."""
    if q.device.type != "cpu":
        return f"the tensors are on {q.device.type}; served: cpu"
    dtype = statistics_dtype(q.dtype, k.dtype, v.dtype)
    if dtype != torch.float32:
        return f"the inputs need statistics in {dtype}; served: float32 and narrower"
    if options.growth == "recycle":
        return "growth 'recycle' is not served"
    if options.seeds != "spread":
        return f"seeds {options.seeds!r} are not served; served: 'spread'"
    if options.value_weight:
        return f"value_weight={options.value_weight} is not served; served: 0"
    return None
