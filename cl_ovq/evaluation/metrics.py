"""Continual-learning metrics as pure functions of the results matrix.

`R` has `T + 1` rows and `T` columns: `R[i, j]` is the metric on test experience j (counted from 1) after training on
experience i; row 0 is before any training. Rows that were not measured hold NaN, and a metric that needs them is NaN.
Losses use the same functions with the sign turned.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def experiences(matrix: Matrix) -> int:
    """Return T, after checking the shape.

    Raises:
        ValueError: the matrix has not one row more than columns.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] + 1 or matrix.shape[1] == 0:
        raise ValueError(f"a results matrix has T + 1 rows and T columns, not shape {matrix.shape}")
    return matrix.shape[1]


def accuracy(matrix: Matrix) -> float:
    """Return `ACC = mean_j R[T, j]` (Lopez-Paz and Ranzato 2017)."""
    return float(matrix[experiences(matrix)].mean())


def forgetting(matrix: Matrix) -> float:
    """Return `F = mean_{j<T} (max_{j<=i<T} R[i, j] - R[T, j])` (Chaudhry et al. 2018); NaN for one experience.

    The maximum runs over the rows after the experience was learned and before the last, so F is negative where the last
    row is the best.
    """
    last = experiences(matrix)
    drops = [matrix[j + 1 : last, j].max() - matrix[last, j] for j in range(last - 1)]
    return _mean(drops)


def backward_transfer(matrix: Matrix) -> float:
    """Return `BWT = mean_{j<T} (R[T, j] - R[j, j])` (Lopez-Paz and Ranzato 2017); NaN for one experience."""
    last = experiences(matrix)
    return _mean([matrix[last, j] - matrix[j + 1, j] for j in range(last - 1)])


def forward_transfer(matrix: Matrix) -> float:
    """Return `FWT = mean_{j>1} (R[j-1, j] - R[0, j])` (Lopez-Paz and Ranzato 2017); NaN for one experience.

    In a class-incremental stream a class that was never seen is never predicted, so that FWT is minus the accuracy
    before training, whatever the model: take it from the task-masked matrix there.
    """
    last = experiences(matrix)
    return _mean([matrix[j, j] - matrix[0, j] for j in range(1, last)])


def learning_accuracy(matrix: Matrix) -> float:
    """Return `LA = mean_j R[j, j]`: how well each experience is learned when it comes (Riemer et al. 2019)."""
    return _mean([matrix[j + 1, j] for j in range(experiences(matrix))])


def part(matrix: Matrix, learned: int) -> Matrix:
    """Return the results matrix of the stream's first `learned` experiences alone."""
    return matrix[: learned + 1, :learned]


METRICS: dict[str, Callable[[Matrix], float]] = {
    "accuracy": accuracy,
    "forgetting": forgetting,
    "backward_transfer": backward_transfer,
    "forward_transfer": forward_transfer,
    "learning_accuracy": learning_accuracy,
}


def all_metrics(matrix: Matrix) -> dict[str, float | None]:
    """Return every metric by name; None where it is undefined (as JSON has no NaN)."""
    values = {name: metric(matrix) for name, metric in METRICS.items()}
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan
