"""Values that count only beside others: against every combination, from which what does not count is struck."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_ovq.errors import UserError
from cl_ovq.studies import load_study
from cl_ovq.studies.grid import points_of, read_grid

KEYS = ("a", "b", "c")
VALUES = st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True)


@st.composite
def grids(draw):
    tree = {}
    for key in KEYS[: draw(st.integers(0, 3))]:
        when = {other: draw(VALUES) for other in (*tree, "set") if draw(st.booleans())}
        tree[key] = {"choice": draw(VALUES), "when": when} if when else draw(VALUES)
    return tree


@given(tree=grids(), anyway=st.integers(0, 2))
def test_points_are_all_combinations_without_what_does_not_count(tree, anyway):
    found = points_of(read_grid(tree, "grid"), lambda: {"set": anyway})
    described = {key: value if isinstance(value, dict) else {"choice": value} for key, value in tree.items()}
    expected = []
    for values in itertools.product(*(one["choice"] for one in described.values())):
        point = dict(zip(described, values, strict=True))
        for key, one in described.items():  # a key that was struck is no value of anything below it
            if any(({"set": anyway} | point).get(other) not in wanted for other, wanted in one.get("when", {}).items()):
                del point[key]
        if point not in expected:
            expected.append(point)
    assert found == expected


STUDY = """
tuning:
  seeds: [7]
  grid:
    strategy.buffer_size: {{choice: [10, 20], when: {{strategy.name: [replay, er_ace]}}}}
    strategy.loss_weight: {{choice: [0.5], when: {{strategy.name: {condition}}}}}
grids:
- strategy: {{naive: {{experiment: {tiny}, strategy.name: naive}}, replay: {{experiment: {tiny}}}}}
"""


def test_a_row_has_the_values_of_its_own_parts(tiny_path, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(tiny=tiny_path, condition="naive_of_another_kind"))
    first, second = load_study(str(path)).rows  # the experiment's own file says that the second is replay
    assert first.points == [{}]
    assert second.points == [{"strategy.buffer_size": 10}, {"strategy.buffer_size": 20}]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "when: {strategy.name: [",
            "when: {strategy.nam: [",
            r"unknown key at \S+\.when 'strategy.nam'",
        ),
        (
            "choice: [10, 20], when",
            "choose: [10, 20], when",
            r"unknown word at tuning\.grid\.\S+ 'choose'",
        ),
        ("choice: [10, 20]", "choice: 10", "tuning.grid.strategy.buffer_size: 10 is not a list of values"),
    ],
)
def test_a_mistake_is_one_line(tiny_path, tmp_path, old, new, line):
    path, text = tmp_path / "study.yaml", STUDY.format(tiny=tiny_path, condition="er")
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=f"^{line}"):
        load_study(str(path))
