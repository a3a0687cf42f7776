"""The calls that are held against each other, timed and compiled ahead."""

from __future__ import annotations

from dataclasses import replace

from kernels.triton.shapes import Shape

LENGTHS = (16384, 32768, 65536)
HEADS = (16, 256)
USUAL = Shape("forward", "bfloat16", 64, 128, rows=1, tokens=16384, heads=16)


def correctness(*, rehearsal: bool) -> list[Shape]:
    """At the sizes that are timed, as far as fp64 allows; every dtype, head and chunk, and every kind of call."""
    if rehearsal:
        tiny = Shape("train", "bfloat16", 16, 16, capacity=32, rows=1, tokens=40, heads=1)
        return [tiny, replace(tiny, kind="shared", rows=3, tokens=5), replace(tiny, kind="write", rows=3, tokens=5)]
    usual = Shape("train", "bfloat16", 64, 128, rows=1, tokens=4096, heads=4)
    found = [
        replace(usual, dtype=dtype, head=head, chunk=chunk)
        for dtype in ("bfloat16", "float16", "float32")
        for head in (64, 128)
        for chunk in (64, 128)
    ]
    found += [replace(shape, kind="forward") for shape in found if shape.chunk == 128]
    found += [replace(usual, group=4), replace(usual, masked=True), replace(usual, kind="resume", rows=2)]
    found += [replace(usual, choices=(("read_out", "gmr"), ("learning_rate", "floored")), biased=True)]
    for kind in ("decode", "shared", "write"):
        found += [Shape(kind, dtype, head, 128, heads=4) for dtype in ("bfloat16", "float32") for head in (64, 128)]
    return found


def speed(*, rehearsal: bool) -> list[Shape]:
    """Forward, and forward and backward, the few heads of one long sequence first."""
    if rehearsal:
        tiny = Shape("forward", "bfloat16", 16, 16, capacity=32, rows=1, tokens=48, heads=2)
        return [tiny, replace(tiny, kind="train")]
    return [
        replace(USUAL, kind=kind, heads=heads, tokens=tokens)
        for heads in HEADS
        for kind in ("forward", "train")
        for tokens in LENGTHS
    ]


def decoding(*, rehearsal: bool) -> list[Shape]:
    """The context that is read before decoding."""
    if rehearsal:
        return [Shape("forward", "bfloat16", 16, 16, capacity=32, rows=1, tokens=40, heads=2)]
    return [replace(USUAL, tokens=tokens) for tokens in (1024, 16384, 65536)]
