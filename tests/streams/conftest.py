"""Streams that several tests read; they are built once."""

from __future__ import annotations

import functools

import pytest

import streams


@functools.cache
def _digits(scenario: str, experiences: int, seed: int) -> streams.Stream:
    return streams.build_stream(
        "split_digits", streams.SplitOptions(scenario=scenario, experiences=experiences), seed=seed
    )


@pytest.fixture(scope="session")
def digits():
    """`digits(scenario, experiences, seed)`: a digits stream, not to be changed."""

    def build(scenario: str = "class_incremental", experiences: int = 5, seed: int = 0) -> streams.Stream:
        return _digits(scenario, experiences, seed)

    return build
