"""What runs are judged by: of every metric, which way is better and what it is called. Nothing here imports torch.

A stream has one quantity (`cl_ovq.learning.OBJECTIVES`): accuracy, or a loss. Its averages are named after it and have
the sign that it has; differences (forgetting, transfer) are of the results matrix, in which a loss has its sign turned.
"""

from __future__ import annotations

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
# And those that only some runs have.
BETTER = {
    **METRICS,
    "forward_transfer_task_masked": 1,
    "task_masked_accuracy": 1,
    "intransigence": -1,
    "average_anytime_accuracy": 1,
    "worst_case_accuracy": 1,
}
TITLES = {
    **{quantity: f"average {quantity.replace('_', ' ')}" for quantity in QUANTITIES},
    "forward_transfer_task_masked": "forward transfer, task-masked",
    "task_masked_accuracy": "task-masked accuracy",
    "worst_case_accuracy": "worst-case accuracy",
}


def words(name: str) -> str:
    """Return a metric's or quantity's name as it is written in text."""
    return name.replace("_", " ")


def title(metric: str) -> str:
    """Return what a metric of the results matrix is called in tables."""
    return TITLES.get(metric, words(metric))


def matrix_label(quantity: str) -> str:
    """Return what a results matrix holds, in words."""
    return words(quantity) if QUANTITIES[quantity] > 0 else f"minus {words(quantity)}"


def is_foreign(metric: str, quantity: str) -> bool:
    """Return whether a metric is the average of another quantity than a stream's own."""
    return metric in {prefix + other for prefix in AVERAGES for other in QUANTITIES if other != quantity}
