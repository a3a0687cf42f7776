"""Search spaces, against brute force and numpy's own distributions."""

import itertools

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cl_ovq.sweeps.space import Parameter, read_space

CONDITIONAL = {
    "a": {"grid": [1, 2]},
    "b": {"choice": ["x", "y", "z"]},
    "c": {"uniform": [0.0, 1.0], "when": {"b": ["x", "y"]}},
    "d": {"randint": [3, 5], "when": {"c": []}},
}


def test_a_grid_is_every_combination_and_leaves_out_what_does_not_count():
    space = read_space({"a": {"grid": [1, 2]}, "b": {"choice": [3, 4]}, "c": {"grid": [5, 6], "when": {"b": 4}}})
    found = space.combinations(("grid", "choice"))
    wanted = [
        {"a": a, "b": b} | ({"c": c} if b == 4 else {})
        for a, b, c in itertools.product([1, 2], [3, 4], [5, 6])
        if b == 4 or c == 5
    ]
    assert found == wanted


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 8))
def test_draws_keep_to_the_space_and_share_trials_alike_among_grids(seed, rounds):
    space = read_space({k: v for k, v in CONDITIONAL.items() if k != "d"})
    points = space.draws(2 * rounds, seed)
    assert [point["a"] for point in points] == [1, 2] * rounds
    for point in points:
        assert point["b"] in ("x", "y", "z")
        assert ("c" in point) == (point["b"] != "z")
        assert 0 <= point.get("c", 0) <= 1
    assert space.draws(2 * rounds, seed) == points
    assert space.draws(2 * rounds + 2, seed)[: len(points)] == points


@pytest.mark.parametrize(
    ("parameter", "distribution"),
    [
        (Parameter("k", "uniform", (2.0, 5.0)), stats.uniform(2, 3)),
        (Parameter("k", "loguniform", (1e-4, 1e-1)), stats.loguniform(1e-4, 1e-1)),
    ],
)
def test_draws_have_the_distribution_that_they_are_named_for(parameter, distribution):
    generator = np.random.default_rng(0)
    assert stats.kstest([parameter.draw(generator) for _ in range(2000)], distribution.cdf).pvalue > 0.01


def test_whole_numbers_include_both_ends():
    generator = np.random.default_rng(0)
    assert {Parameter("k", "randint", (3, 5)).draw(generator) for _ in range(200)} == {3, 4, 5}


@settings(max_examples=40)
@given(st.integers(0, 2**31))
def test_steps_stay_in_the_space(seed):
    generator = np.random.default_rng(seed)
    space = read_space({"b": {"choice": [1, 2, 4]}, "c": {"loguniform": [0.1, 0.5]}, "d": {"randint": [1, 9]}})
    point = space.draws(1, seed)[0]
    for _ in range(10):
        moved = space.perturb(point, 0.3, generator)
        assert moved["b"] in (1, 2, 4)
        assert 0.1 <= moved["c"] <= 0.5
        assert isinstance(moved["d"], int)
        assert 1 <= moved["d"] <= 9
        point = moved
    assert space.perturb({"b": 2, "c": 0.2, "d": 5}, 0.0, generator)["c"] in (0.2 * 0.8, 0.2 * 1.25)


def test_optuna_suggests_points_of_the_space():
    space = read_space({"b": {"choice": ["x", "y"]}, "c": {"loguniform": [0.1, 0.5], "when": {"b": "x"}}})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = [space.suggest(study.ask()) for _ in range(20)]
    assert {point["b"] for point in points} == {"x", "y"}
    assert all(("c" in point) == (point["b"] == "x") for point in points)


@settings(max_examples=60)
@given(st.data())
def test_combinations_are_counted_without_making_them(data):
    tree = {}
    for key in "abcde"[: data.draw(st.integers(1, 5))]:
        values = data.draw(st.lists(st.integers(0, 3) | st.lists(st.integers(0, 1)), min_size=1, max_size=3))
        values = list({repr(value): value for value in values}.values())
        tree[key] = {data.draw(st.sampled_from(["grid", "choice"])): values}
        if len(tree) > 1 and data.draw(st.booleans()):
            tree[key]["when"] = {
                data.draw(st.sampled_from(list(tree)[:-1])): data.draw(st.lists(st.integers(0, 3), min_size=1))
            }
    space = read_space(tree)
    for kinds in (("grid",), ("grid", "choice")):
        assert space.count(kinds) == len(space.combinations(kinds))
