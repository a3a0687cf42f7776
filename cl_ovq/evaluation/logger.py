"""Hands the metrics that Avalanche's plugins emit to whoever tracks the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin

Log = Callable[[Mapping[str, float], int], None]


class MetricLogger(BaseLogger):
    """Passes every metric on as it is emitted.

    Args:
        log: takes values by name, and the step they belong to.
    """

    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Pass a metric on."""
        self.log({name: float(value)}, x_plot)


def evaluator(*metrics: Any, log: Log | None = None) -> EvaluationPlugin:
    """Return what computes Avalanche metrics while a strategy works, and keeps none of their values.

    Args:
        metrics: to compute.
        log: is given each value; none is logged if None.
    """
    return EvaluationPlugin(*metrics, loggers=[] if log is None else [MetricLogger(log)], collect_all=False)
