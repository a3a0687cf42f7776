"""Metrics against loops written straight from the definitions, and an example worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cl_ovq.evaluation import metrics
from cl_ovq.metric_names import BETTER, is_foreign
from cl_ovq.training import OBJECTIVES


@st.composite
def matrices(draw, least=1):
    t = draw(st.integers(least, 6))
    return draw(arrays.arrays(np.float64, (t + 1, t), elements=st.floats(0, 1, width=32)))


def by_definition(matrix):
    """Compute every metric with indices as in the definitions: R[i][j], i from 0 to T, j from 1 to T."""
    t = len(matrix) - 1
    r = [[None, *row] for row in matrix.tolist()]

    def mean(values):
        return sum(values) / len(values) if values else None

    drops = []
    for j in range(1, t):
        best = -math.inf
        for i in range(j, t):
            best = max(best, r[i][j])
        drops.append(best - r[t][j])
    return {
        "accuracy": mean([r[t][j] for j in range(1, t + 1)]),
        "forgetting": mean(drops),
        "backward_transfer": mean([r[t][j] - r[j][j] for j in range(1, t)]),
        "forward_transfer": mean([r[j - 1][j] - r[0][j] for j in range(2, t + 1)]),
        "learning_accuracy": mean([r[j][j] for j in range(1, t + 1)]),
        "average_incremental_accuracy": mean([mean(r[i][1 : i + 1]) for i in range(1, t + 1)]),
    }


@given(matrix=matrices())
def test_metrics_are_the_definitions(matrix):
    found, expected = metrics.all_metrics(matrix), by_definition(matrix)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


@given(matrix=matrices(), measured=st.randoms())
def test_by_age_is_the_definition(matrix, measured):
    """Of what was measured; rows that were not are left out."""
    t = len(matrix) - 1
    for row in range(t + 1):
        if measured.random() < 0.4:
            matrix[row] = math.nan
    expected = []
    for age in range(t):
        values = [matrix[j + age, j - 1] for j in range(1, t - age + 1) if not math.isnan(matrix[j + age, j - 1])]
        expected.append(sum(values) / len(values) if values else math.nan)
    assert metrics.by_age(matrix) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@given(matrix=matrices(least=2))
def test_forgetting_is_at_least_minus_backward_transfer(matrix):
    found = metrics.all_metrics(matrix)
    assert found["forgetting"] >= -found["backward_transfer"] - 1e-12


def test_an_example_by_hand():
    matrix = np.array(
        [
            [0.10, 0.20, 0.30],  # before training
            [0.90, 0.25, 0.35],
            [0.95, 0.80, 0.20],
            [0.60, 0.70, 1.00],
        ]
    )
    found = metrics.all_metrics(matrix)
    assert found["accuracy"] == pytest.approx((0.60 + 0.70 + 1.00) / 3)
    assert found["forgetting"] == pytest.approx(((0.95 - 0.60) + (0.80 - 0.70)) / 2)
    assert found["backward_transfer"] == pytest.approx(((0.60 - 0.90) + (0.70 - 0.80)) / 2)
    assert found["forward_transfer"] == pytest.approx(((0.25 - 0.20) + (0.20 - 0.30)) / 2)
    assert found["learning_accuracy"] == pytest.approx((0.90 + 0.80 + 1.00) / 3)


def test_forgetting_leaves_the_last_row_out_of_the_maximum():
    matrix = np.array([[0.0, 0.0], [0.5, 0.0], [0.9, 1.0]])  # the last row is the best: F is negative
    assert metrics.forgetting(matrix) == pytest.approx(0.5 - 0.9)


def test_rows_that_were_not_measured_leave_metrics_undefined():
    matrix = np.full((4, 3), np.nan)
    matrix[0], matrix[3] = 0.1, [0.7, 0.8, 0.9]
    assert metrics.all_metrics(matrix) == {
        "accuracy": pytest.approx(0.8),
        "forgetting": None,
        "backward_transfer": None,
        "forward_transfer": None,
        "learning_accuracy": None,
        "average_incremental_accuracy": None,
    }


def test_one_experience():
    assert metrics.all_metrics(np.array([[0.1], [0.7]])) == {
        "accuracy": 0.7,
        "forgetting": None,
        "backward_transfer": None,
        "forward_transfer": None,
        "learning_accuracy": 0.7,
        "average_incremental_accuracy": 0.7,
    }


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 3), (4, 2), (1, 0), (0, 0), (2, 1, 1)])
def test_other_shapes_are_refused(shape):
    for metric in (
        metrics.average,
        metrics.forgetting,
        metrics.backward_transfer,
        metrics.forward_transfer,
        metrics.learning_average,
        metrics.average_incremental,
    ):
        with pytest.raises(ValueError, match=r"T \+ 1 rows"):
            metric(np.zeros(shape))


@given(matrix=matrices(), reference=matrices())
def test_curves_and_intransigence_are_the_definitions(matrix, reference):
    t = len(matrix) - 1
    seen = [sum(matrix[i][:i]) / i for i in range(1, t + 1)]
    assert metrics.seen_average(matrix) == pytest.approx(seen)
    assert metrics.average_incremental(matrix) == pytest.approx(sum(seen) / t)
    assert metrics.all_task_accuracy(matrix) == pytest.approx([sum(row) / t for row in matrix[1:]])
    if reference.shape != matrix.shape:
        return
    short = [reference[j][j - 1] - matrix[j][j - 1] for j in range(1, t + 1)]
    assert metrics.intransigence(matrix, reference) == pytest.approx(sum(short) / t, abs=1e-12)
    joint = np.full_like(reference, np.nan)
    joint[0], joint[-1] = reference[0], reference[-1]
    if t > 1:
        short = [reference[t][j - 1] - matrix[j][j - 1] for j in range(1, t + 1)]
        assert metrics.intransigence(matrix, joint) == pytest.approx(sum(short) / t, abs=1e-12)


def test_a_loss_by_hand():
    """Averages have the loss's own name and sign; differences are of the matrix, where its sign is turned."""
    bits = np.array([[8.0, 8.2], [3.0, 5.0], [4.0, 2.5]])
    assert metrics.all_metrics(-bits, "bits_per_byte") == {
        "bits_per_byte": pytest.approx((4.0 + 2.5) / 2),
        "forgetting": pytest.approx(4.0 - 3.0),  # it has risen by one bit since it was learned
        "backward_transfer": pytest.approx(3.0 - 4.0),
        "forward_transfer": pytest.approx(8.2 - 5.0),
        "learning_bits_per_byte": pytest.approx((3.0 + 2.5) / 2),
        "average_incremental_bits_per_byte": pytest.approx((3.0 + (4.0 + 2.5) / 2) / 2),
    }


def test_every_metric_says_which_way_is_better():
    good = np.array([[0.0, 0.0], [1.0, 0.5], [1.0, 1.0]])  # learned, kept, and of use for the second
    bad = np.array([[0.0, 0.0], [0.9, -0.5], [-1.0, -1.0]])
    for objective in OBJECTIVES.values():
        better, worse = (metrics.all_metrics(matrix, objective.quantity) for matrix in (good, bad))
        assert all((better[name] - worse[name]) * BETTER[name] > 0 for name in better)
        assert not any(is_foreign(name, objective.quantity) for name in better)
    assert {metric for metric in BETTER if is_foreign(metric, "bits_per_byte")} == {
        "accuracy",
        "learning_accuracy",
        "squared_error",
        "learning_squared_error",
        "average_incremental_accuracy",
        "average_incremental_squared_error",
    }
