"""Evaluation inside experiences: it disturbs nothing, measures what an evaluation by hand measures, and is added up."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quick_settings import ANYWHERE, quick

from cl_ovq.errors import UserError
from cl_ovq.evaluation import metrics
from cl_ovq.evaluation.anytime import AnytimeEvaluation, anytime_figure, as_array
from cl_ovq.evaluation.matrix import MatrixRecorder, Point
from cl_ovq.runs.checking import check_config
from cl_ovq.runs.setup import load_stream


def learned(session, every, *overrides):
    matrix = MatrixRecorder([range(5), range(5, 10)])
    trained = session(*overrides, metrics=[matrix])
    last = [] if every is None else [AnytimeEvaluation(matrix, trained.test, every)]
    trained.strategy.plugins += last  # behind the clock
    trained.learn()
    return trained, matrix


@pytest.mark.parametrize("name", [name for name in ANYWHERE if name != "joint"])
def test_training_goes_on_as_if_nothing_had_been(session, name):
    states, steps = [], []
    for every in (None, 2):
        trained, matrix = learned(session, every, *quick(name, "model.dropout=0.1"))
        found = {key: value.numpy().tobytes() for key, value in trained.model.state_dict().items()}
        states.append(found | {"generator": torch.get_rng_state().numpy().tobytes()})
        steps.append(trained.strategy.clock.train_iterations)
    assert states[0] == states[1]
    assert steps[0] == steps[1]
    assert len(matrix.points) >= 2


def test_a_point_is_what_the_row_of_a_run_that_ends_there_says(run):
    short = run("evaluation.every_steps=1", "strategy.epochs=1", "strategy.name=naive")
    steps = max(point["step"] for point in short.anytime if point["experience"] == 1)
    long = run(f"evaluation.every_steps={steps}", "strategy.epochs=2", "strategy.name=naive")
    assert long.anytime[0] == {"step": steps, "experience": 1, "values": short.matrix[1][:1]}
    assert long.anytime[1]["step"] == 2 * steps
    assert long.anytime[1]["values"] == long.matrix[1][:1]


def test_points_end_with_the_rows_and_no_step_counts_twice(run):
    for every in (1, 5):
        result = run(f"evaluation.every_steps={every}", "strategy.name=naive")
        steps = [point["step"] for point in result.anytime]
        assert steps == sorted(set(steps))
        assert steps[-1] == result.provenance["train_steps"]
        ends = [a for a, b in itertools.pairwise(result.anytime) if b["experience"] > a["experience"]]
        assert [end["values"] for end in ends] == [result.matrix[1][:1]]
        assert result.anytime[-1]["values"] == result.matrix[2]
        last = result.provenance["train_steps"]
        assert set(steps) == {*range(every, last, every), ends[0]["step"], last}


def by_definition(points, experience, experiences):
    """Average anytime and worst-case accuracy, one loop a line of their definitions."""
    anytime = []
    for values in points:
        seen = [value for value in values if value is not None]
        anytime.append(sum(seen) / len(seen))
    worst = [points[-1][experiences - 1]]
    for j in range(experiences - 1):
        after = [values[j] for values, number in zip(points, experience, strict=True) if number > j + 1]
        worst.append(min(after))
    return sum(anytime) / len(anytime), sum(worst) / experiences


@given(data=st.data(), experiences=st.integers(1, 5))
def test_metrics_are_the_definitions(data, experiences):
    experience = sorted(data.draw(st.lists(st.integers(1, experiences), max_size=8)) + list(range(1, experiences + 1)))
    points = [data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)) for n in experience]
    records = [
        Point(step, number, values) for step, (number, values) in enumerate(zip(experience, points, strict=True))
    ]
    values = as_array(records, experiences)
    assert values.shape == (len(points), experiences)
    padded = [[*row, *[None] * (experiences - len(row))] for row in points]
    anytime, worst = by_definition(padded, experience, experiences)
    assert metrics.average_anytime_accuracy(values) == pytest.approx(anytime)
    assert metrics.worst_case_accuracy(values, experience) == pytest.approx(worst)


def test_worst_case_sees_what_rows_do_not(run):
    """The stability gap: accuracy falls within an experience and comes back before its end."""
    points = [Point(1, 1, [0.9]), Point(2, 2, [0.1, 0.5]), Point(3, 2, [0.8, 0.9])]
    assert metrics.worst_case_accuracy(as_array(points, 2), [p.experience for p in points]) == pytest.approx(0.5)
    result = run("evaluation.every_steps=1", "strategy.name=naive")
    assert 0 <= result.metrics["worst_case_accuracy"] <= result.metrics["accuracy"]
    assert "worst_case_accuracy" not in run("strategy.name=naive").metrics


def test_the_figure_has_a_curve_an_experience_and_their_mean():
    points = [Point(1, 1, [0.9]), Point(2, 2, [0.1, 0.5]), Point(3, 2, [0.8, 0.9])]
    (axes,) = anytime_figure(points, "a run").axes
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_allclose(drawn["mean"], [0.9, 0.3, 0.85])
    np.testing.assert_allclose(drawn["experience 2"], [np.nan, 0.5, 0.9])


def test_joint_training_has_no_inside(tiny):
    with pytest.raises(UserError, match=r"^evaluation.every_steps: joint training"):
        check_config(tiny("evaluation.every_steps=5", "strategy.name=joint"))


def test_an_evaluation_that_would_never_come_is_refused(tiny):
    load_stream(tiny("evaluation.every_steps=18", "strategy.batch_size=64"))  # 9 or more an experience
    load_stream(tiny("evaluation.every_steps=26", "strategy.batch_size=64", "strategy.name=cumulative"))
    for overrides in ((), ("strategy.name=naive", "evaluation.stop_after=1")):
        with pytest.raises(UserError, match=r"^evaluation\.every_steps: 1000 is too large: the run has \d+ steps$"):
            load_stream(tiny("evaluation.every_steps=1000", *overrides))
