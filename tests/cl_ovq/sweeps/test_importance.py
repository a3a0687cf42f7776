"""What makes the importance of keys doubtful: few trials, and keys whose values came together."""

from types import SimpleNamespace

import numpy as np
import pytest

from cl_ovq.sweeps.importance import FEW, FEWEST, doubts
from cl_ovq.sweeps.records import DONE, FAILED, Record
from cl_ovq.sweeps.space import read_space

SPACE = {
    "optimizer.learning_rate": {"loguniform": [1e-4, 1e-1]},
    "dictionary.capacity": {"choice": [8, 16, 32, 64]},
    "model.mixer": {"choice": ["ovq", "softmax", "linear"]},
}


def told(points, status=DONE):
    sweep = SimpleNamespace(space=read_space({key: SPACE[key] for key in points[0]}), primary="accuracy")
    return doubts(sweep, [Record(n, point, status=status, values={"accuracy": n}) for n, point in enumerate(points)])


def drawn(n, seed=0):
    space, generator = read_space(SPACE), np.random.default_rng(seed)
    return [{p.key: p.draw(generator) for p in space.parameters} for _ in range(n)]


def test_many_trials_of_keys_on_their_own_are_in_no_doubt():
    assert told(drawn(3 * FEW)) == []


def test_few_trials_are_said():
    (line,) = told(drawn(3 * FEW - 1))
    assert f"{3 * FEW - 1} trials are few for 3 keys" in line
    (line,) = told(drawn(FEWEST - 1))
    assert f"fewer than {FEWEST} trials" in line
    assert told(drawn(50), status=FAILED) == [line]


@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_that_rise_or_fall_together_are_said(sign):
    points = drawn(40)
    for point in points:
        place = [8, 16, 32, 64].index(point["dictionary.capacity"])
        point["optimizer.learning_rate"] = 1e-3 * 10 ** (sign * place / 4) * (1 + 1e-3 * np.sin(place))
    (line,) = told(points)
    assert "optimizer.learning_rate and dictionary.capacity changed together" in line


def test_names_that_go_with_one_value_each_are_said_and_a_key_that_never_changed_is_not():
    points = drawn(40)
    for point in points:
        point["dictionary.capacity"] = {"ovq": 8, "softmax": 64, "linear": 16}[point["model.mixer"]]
    (line,) = told(points)
    assert "dictionary.capacity and model.mixer changed together" in line
    for point in points:  # numbers, in no order
        point["optimizer.learning_rate"] = {8: 1e-3, 16: 1e-1, 64: 1e-2}[point["dictionary.capacity"]]
    assert sum("optimizer.learning_rate and dictionary.capacity" in line for line in told(points)) == 1
    for point in points:
        point["dictionary.capacity"], point["optimizer.learning_rate"] = 8, 1e-3
    assert told(points) == []
