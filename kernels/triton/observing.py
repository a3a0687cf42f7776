"""What calls would launch, and how long each launch takes on a GPU. Does not import Triton."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, its grid, its arguments by name, and how it is compiled."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]


@dataclass(frozen=True)
class Span:
    """A launch on a GPU: the kernel's name, and events before and after it."""

    kernel: str
    begin: torch.cuda.Event
    end: torch.cuda.Event


launches: list[Launch] | None = None  # where they are recorded
spans: list[Span] | None = None  # where they are timed


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect launches in place of making them; calls may then be made on the `meta` device."""
    global launches
    before, launches = launches, []
    try:
        yield launches
    finally:
        launches = before


def is_recording() -> bool:
    """Whether launches are collected in place of being made."""
    return launches is not None


@contextmanager
def timing() -> Iterator[list[Span]]:
    """Collect the events around every launch; `Span.begin.elapsed_time(Span.end)` is valid after a synchronisation."""
    global spans
    before, spans = spans, []
    try:
        yield spans
    finally:
        spans = before
