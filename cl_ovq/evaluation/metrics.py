"""Continual-learning metrics as pure functions of the results matrix.

`R` has `T + 1` rows and `T` columns: `R[i, j]` is the metric on test experience j (counted from 1) after training on
experience i; row 0 is before any training. Rows that were not measured hold NaN, and a metric that needs them is NaN.
Of a loss `R` holds the loss with its sign turned, so that more is better in every matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cl_ovq.errors import UserError, own_code
from cl_ovq.metric_names import MATRIX_METRICS, QUANTITIES

Matrix = NDArray[np.float64]


def experiences(matrix: Matrix) -> int:
    """Return T, after checking the shape.

    Raises:
        ValueError: the matrix has not one row more than columns.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] + 1 or matrix.shape[1] == 0:
        raise ValueError(f"a results matrix has T + 1 rows and T columns, not shape {matrix.shape}")
    return matrix.shape[1]


def average(matrix: Matrix) -> float:
    """Return `ACC = mean_j R[T, j]` (Lopez-Paz and Ranzato 2017)."""
    return float(matrix[experiences(matrix)].mean())


def forgetting(matrix: Matrix) -> float:
    """Return `F = mean_{j<T} (max_{j<=i<T} R[i, j] - R[T, j])` (Chaudhry et al. 2018); NaN for one experience.

    The maximum runs over the rows after the experience was learned and before the last, so F is negative where the last
    row is the best.
    """
    last = experiences(matrix)
    learned = np.where(_since_learned(last), matrix[1:], -np.inf)
    return _mean(learned[:-1, :-1].max(0) - matrix[last, :-1]) if last > 1 else math.nan


def backward_transfer(matrix: Matrix) -> float:
    """Return `BWT = mean_{j<T} (R[T, j] - R[j, j])` (Lopez-Paz and Ranzato 2017); NaN for one experience."""
    last = experiences(matrix)
    return _mean(matrix[last, :-1] - matrix[1:].diagonal()[:-1])


def forward_transfer(matrix: Matrix) -> float:
    """Return `FWT = mean_{j>1} (R[j-1, j] - R[0, j])` (Lopez-Paz and Ranzato 2017); NaN for one experience.

    In a class-incremental stream a class that was never seen is never predicted, so that FWT is minus the accuracy
    before training, whatever the model: take it from the task-masked matrix there.
    """
    experiences(matrix)
    return _mean(matrix.diagonal()[1:] - matrix[0, 1:])


def learning_average(matrix: Matrix) -> float:
    """Return `LA = mean_j R[j, j]`: how well each experience is learned when it comes (Riemer et al. 2019)."""
    experiences(matrix)
    return _mean(matrix[1:].diagonal())


def average_incremental(matrix: Matrix) -> float:
    """Return `mean_i mean_{j<=i} R[i, j]`, over `1 <= i <= T` (Rebuffi et al. 2017, iCaRL)."""
    return float(np.mean(seen_average(matrix)))


def seen_average(matrix: Matrix) -> list[float]:
    """Return `mean_{j<=i} R[i, j]` for i from 1 to T: over the experiences learned so far."""
    last = experiences(matrix)
    sums = np.where(_since_learned(last), matrix[1:], 0.0).sum(1)
    return (sums / np.arange(1, last + 1)).tolist()


def all_task_accuracy(matrix: Matrix) -> list[float]:
    """Return `mean_j R[i, j]` for i from 1 to T: over all experiences, those not yet learned too."""
    experiences(matrix)
    return matrix[1:].mean(1).tolist()


def by_age(matrix: Matrix) -> list[float]:
    """Return `mean_j R[j + a, j]` for ages a from 0 to T - 1: of an experience after which a others were learned.

    The mean is over the experiences that were evaluated at that age, `1 <= j <= T - a` at most; NaN where none was.
    """
    last = experiences(matrix)
    ages = (matrix[1:].diagonal(-age) for age in range(last))
    return [float(np.nanmean(values)) if not np.isnan(values).all() else math.nan for values in ages]


def average_anytime_accuracy(points: Matrix) -> float:
    """Return the mean over evaluations of the mean over the experiences that training had come to (Caccia et al. 2022).

    Args:
        points: `[P, T]`, an evaluation a row, NaN on experiences that training had not come to.
    """
    return float(np.nanmean(points, axis=1).mean()) if len(points) else math.nan


def worst_case_accuracy(points: Matrix, experience: Sequence[int]) -> float:
    """Return `(R[T, T] + sum_{j<T} min_p A[p, j]) / T`, over the evaluations p after experience j was learned.

    De Lange, van de Ven and Tuytelaars 2023 (arXiv 2205.13452), eq. 4; the last row of `points` is after the last
    experience.

    Args:
        points: `[P, T]`, an evaluation a row, in the order of training.
        experience: `[P]`, the experience that was being learned or had just been learned, from 1 on.
    """
    last, number = points.shape[1], np.asarray(experience)
    if not len(points):
        return math.nan
    least = [points[number > j + 1, j].min() for j in range(last - 1)]
    return float((points[-1, -1] + sum(least)) / last)


def intransigence(matrix: Matrix, reference: Matrix) -> float:
    """Return `I = mean_j (R*[j, j] - R[j, j])`: what learning each experience falls short of a reference.

    Args:
        matrix: `R`.
        reference: `R*`, of a model trained on all data so far (cumulative; Chaudhry et al. 2018, eq. 4), or, where its
            diagonal was not measured, of one trained on all data at once (joint), of which the last row is taken.
    """
    experiences(reference)
    best = reference[1:].diagonal()
    if np.isnan(best).any():
        best = reference[-1]
    return float(best.mean()) - learning_average(matrix)


def part(matrix: Matrix, learned: int) -> Matrix:
    """Return the results matrix of the stream's first `learned` experiences alone."""
    return matrix[: learned + 1, :learned]


def all_metrics(matrix: Matrix, quantity: str = "accuracy") -> dict[str, float | None]:
    """Return every metric by name; None where it is undefined (as JSON has no NaN).

    Args:
        matrix: `R`, of a loss with its sign turned.
        quantity: what it holds. The averages are named after it, and have the sign that it has.
    """
    sign = QUANTITIES[quantity]
    values = {
        quantity: sign * average(matrix),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(matrix),
        f"learning_{quantity}": sign * learning_average(matrix),
        f"average_incremental_{quantity}": sign * average_incremental(matrix),
        **{name: _own(name, metric.build, matrix) for name, metric in MATRIX_METRICS.items()},
    }
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _own(name: str, metric: Callable[[Matrix], float], matrix: Matrix) -> float:
    """Return a metric of one's own.

    Raises:
        UserError: it fails, or is no number.
    """
    with own_code(f"metric '{name}'", metric):
        value = float(metric(matrix.copy()))
    if math.isinf(value):
        raise UserError(f"metric '{name}' is {value}: it must be a finite number, or NaN where it is undefined")
    return value


def _since_learned(last: int) -> NDArray[np.bool_]:
    """Return `[T, T]`: whether experience j was learned by the end of experience i."""
    return np.tri(last, dtype=bool)


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def to_lists(matrix: Matrix) -> list[list[float | None]]:
    """Return a matrix as nested lists, with None for NaN."""
    return [to_list(row) for row in matrix]


def to_list(row: Matrix) -> list[float | None]:
    """Return a row of a matrix as a list, with None for NaN."""
    return [None if math.isnan(value) else value for value in row.tolist()]  # Python's numbers: many times as fast


def to_matrix(rows: list[list[float | None]]) -> Matrix:
    """Return nested lists as a matrix, with NaN for None."""
    return np.array(rows, dtype=np.float64)  # of None it makes NaN
