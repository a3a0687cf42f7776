"""The OVQ operator: attention over a dictionary of keys and values that is learned during the forward pass.

o, state = ovq_attention(q, k, v, beta, DictionaryOptions(capacity=512), output_final_state=True)
state, slots = update(state, k, v, options)   # one write with all tokens given
"""

from kernels.attention import IMPLEMENTATIONS, ovq_attention
from kernels.growth import GROWTH
from kernels.merging import merge, resize
from kernels.options import ASSIGNMENT, LEARNING_RATES, PAPER, READ_OUTS, SEEDS, DictionaryOptions
from kernels.state import DictionaryState
from kernels.writing import update, write

__project__ = "cl-ovq"  # `kernels` is a common name: by this the platform knows that it imported its own

__all__ = [
    "ASSIGNMENT",
    "GROWTH",
    "IMPLEMENTATIONS",
    "LEARNING_RATES",
    "PAPER",
    "READ_OUTS",
    "SEEDS",
    "DictionaryOptions",
    "DictionaryState",
    "merge",
    "ovq_attention",
    "resize",
    "update",
    "write",
]
