"""Hands the metrics that Avalanche's plugins emit to whoever tracks the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from avalanche.logging import BaseLogger


class MetricLogger(BaseLogger):
    """Passes every metric on as it is emitted.

    Args:
        log: takes values by name, and the step they belong to.
    """

    def __init__(self, log: Callable[[Mapping[str, float], int], None]) -> None:
        super().__init__()
        self.log = log

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Pass a metric on."""
        self.log({name: float(value)}, x_plot)
