"""Numerics that all implementations share: normalisation, and random numbers that depend on a counter alone."""

import torch
from torch import Tensor

_MULTIPLIER = 0x45D9F3B  # below 2^27, so that a product with 32 bits stays inside int64
_BITS = 0xFFFFFFFF


def inverse_norm(x: Tensor) -> Tensor:
    """`1 / |x|` over the last dimension, kept as size one; zero for vectors shorter than the smallest normal number."""
    squared = x.double().square().sum(-1, keepdim=True)  # holds the square of every number of fp32
    # The inverse of infinity is zero and so is its derivative, which no multiple of the true one's infinity would be.
    return squared.masked_fill(squared <= torch.finfo(x.dtype).tiny ** 2, torch.inf).rsqrt().to(x.dtype)


def normalise(x: Tensor) -> Tensor:
    """`x / |x|` over the last dimension; a zero vector stays zero and gets a zero gradient.

    A vector shorter than the smallest normal number counts as zero, and so does one of fp64 whose squared norm
    underflows or overflows: no finite input makes a NaN, forward or backward.
    """
    return x * inverse_norm(x)


def normalise_backward(unit: Tensor, inverse: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of x given that of `unit = x * inverse`, with `inverse = inverse_norm(x)`."""
    return inverse * (gradient - unit * (unit * gradient).sum(-1, keepdim=True))


def counter_hash(*words: int | Tensor) -> Tensor:
    """A 32-bit hash of integers, elementwise over broadcast tensors, in int64.

    A generator would give other numbers on another device and under another split of the sequence; a hash of (seed,
    position, row, head) cannot. Only the low 32 bits of each word count.
    """
    state: int | Tensor = 0x9E3779B9
    for word in words:
        state = (state ^ word) & _BITS
        for _ in range(2):
            state = (((state >> 16) ^ state) * _MULTIPLIER) & _BITS
        state = (state >> 16) ^ state
    return torch.as_tensor(state)


def gumbel(bits: Tensor) -> Tensor:
    """A standard Gumbel variate in fp64 from 32 random bits."""
    uniform = (bits.double() + 0.5) / 2**32
    return -torch.log(-torch.log(uniform))
