"""What runs are judged by: of every metric, which way is better and what it is called. Nothing here imports torch.

A stream has one quantity (`cl_ovq.training.OBJECTIVES`): accuracy, or a loss. Its averages are named after it and have
the sign that it has; differences (forgetting, transfer) are of the results matrix, in which a loss has its sign turned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cl_ovq.registry import Part, Registry


@dataclass(frozen=True, kw_only=True)
class Metric(Part[Callable[[Any], float]]):
    """A function of the results matrix `[T + 1, T]`, see `cl_ovq.evaluation.metrics`; NaN where it is undefined.

    Attributes:
        sign: 1 where more of it is better, -1 where less is.
    """

    sign: int = 1


# 1: more of it is better; -1: less of it is better.
QUANTITIES = {"accuracy": 1, "bits_per_byte": -1, "squared_error": -1}
AVERAGES = ("", "learning_", "average_incremental_")  # prefixes of the quantity's name
METRICS = {
    **QUANTITIES,
    "forgetting": -1,
    "backward_transfer": 1,
    "forward_transfer": 1,
    **{prefix + quantity: sign for prefix in AVERAGES[1:] for quantity, sign in QUANTITIES.items()},
}
COLUMNS = 12  # of a table of experiences; of more than that it shows so many
# And those that only some runs have.
BETTER = {
    **METRICS,
    "forward_transfer_task_masked": 1,
    "task_masked_accuracy": 1,
    "intransigence": -1,
    "forgetting_beyond_refit": -1,
    "average_anytime_accuracy": 1,
    "worst_case_accuracy": 1,
    "gain": 1,
}
TITLES = {
    **{quantity: f"average {quantity.replace('_', ' ')}" for quantity in QUANTITIES},
    "forward_transfer_task_masked": "forward transfer, task-masked",
    "task_masked_accuracy": "task-masked accuracy",
    "worst_case_accuracy": "worst-case accuracy",
    "gain": "gain by the state",
    "empty_state_accuracy": "accuracy with an empty state",
    "dictionary/size": "dictionary slots",
    "dictionary/effective_size": "effective slots",
    "dictionary/bytes": "dictionary memory",
    "dictionary/plateau_tokens": "tokens to the plateau",
    "wall_seconds": "seconds",
    "peak_memory_bytes": "peak memory",
    "memory_bytes": "carried memory",
}
# Metrics of one's own: every run has them beside those of the platform.
MATRIX_METRICS: Registry[Metric] = Registry("metric", Metric, taken={*BETTER, *TITLES, "all_task_accuracy", "loss"})
# Metrics that are known at the end of a run alone.
FINAL = ("average_anytime_accuracy", "worst_case_accuracy", "gain", "empty_state_accuracy")
COUNTS = ("dictionary/size", "dictionary/effective_size", "dictionary/plateau_tokens")
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def better(metric: str) -> int:
    """Return 1 where more of a metric is better, -1 where less is, and 0 where nobody says."""
    return MATRIX_METRICS[metric].sign if metric in MATRIX_METRICS else BETTER.get(metric, 0)


def known_metrics() -> tuple[str, ...]:
    """Return the metrics by which hyper-parameters can be chosen, those of one's own among them."""
    return (*METRICS, *MATRIX_METRICS)


def own_metrics(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the metrics of one's own that results hold, whether or not they are entered here and now."""
    names = dict.fromkeys(name for metrics in found for name in metrics)
    return [name for name in names if name.isprintable() and name not in {*BETTER, *TITLES}]


def words(name: str) -> str:
    """Return a metric's or quantity's name as it is written in text."""
    return name.replace("_", " ")


def title(metric: str) -> str:
    """Return what a metric is called in tables."""
    return TITLES.get(metric, words(metric))


def format_number(value: float | None, metric: str = "", *, spec: str = "", signed: bool = False) -> str:
    """Return a value of a metric, a difference of two, or a spread, as every table has it.

    Args:
        value: `-` if None.
        metric: its name, which says what it counts: bytes have a unit, numbers of things no digits behind the point.
        spec: Python's format, of what is no metric.
        signed: whether a plus is shown too.
    """
    if value is None:
        return "-"
    if spec:
        return f"{value:{spec}}"
    sign = "+" if signed else "-"  # Python's `-`: only minus
    size = abs(value)
    if metric.endswith("bytes"):
        factor, unit = next((pair for pair in UNITS if size >= 0.9995 * pair[0]), (1.0, "B"))
        digits = 0 if unit == "B" or size >= 99.95 * factor else 1 if size >= 9.995 * factor else 2
        return f"{value / factor:{sign}.{digits}f} {unit}"
    if metric in COUNTS:
        return f"{value:{sign},.{0 if size >= 99.95 or value == round(value) else 1}f}"
    if metric.endswith("seconds"):
        return f"{value:{sign}.1f}"
    if size < 0.1 and size and any(metric.endswith(quantity) for quantity, better in QUANTITIES.items() if better < 0):
        return f"{value:{sign}.3g}"  # a loss has no scale of its own
    return f"{value:{sign}.3f}"


def evenly(count: int, most: int) -> list[int]:
    """Return the numbers from 1 to a count that are shown: all if they are few, else `most` of them, both ends too."""
    if count <= most:
        return list(range(1, count + 1))
    return [1 + round(place * (count - 1) / (most - 1)) for place in range(most)]


def part_note(count: int, most: int) -> str:
    """Return a sentence that says that not all experiences are shown; nothing where all are."""
    return "" if count <= most else f"{most} of {count} experiences; all of them are in results.json."


def matrix_label(quantity: str) -> str:
    """Return what a results matrix holds, in words."""
    return words(quantity) if QUANTITIES[quantity] > 0 else f"minus {words(quantity)}"


def is_foreign(metric: str, quantity: str) -> bool:
    """Return whether a metric is the average of another quantity than a stream's own."""
    return metric in {prefix + other for prefix in AVERAGES for other in QUANTITIES if other != quantity}
