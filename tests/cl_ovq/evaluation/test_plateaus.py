"""Where growth comes to rest and sets in again."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_ovq.evaluation.plateaus import cumulative, find_plateaus


def curve(*pieces):
    """Sizes over 100 records a piece: a piece is (from, to), reached in a straight line."""
    return np.concatenate([np.linspace(low, high, 100, endpoint=False) for low, high in pieces])


def test_a_staircase_has_a_plateau_on_every_step():
    sizes = curve((1, 50), (50, 50), (50, 100), (100, 100), (100, 150), (150, 150))
    tokens = np.arange(len(sizes)) * 10.0
    plateaus = find_plateaus(tokens, range(len(sizes)), sizes)
    assert len(plateaus) == 3
    for plateau, (start, end) in zip(plateaus, ((1000, 2000), (3000, 4000), (5000, None)), strict=True):
        assert plateau.start_tokens == pytest.approx(start, abs=50)
        assert plateau.start_step == plateau.start_tokens / 10
        if end is None:
            assert plateau.end_tokens is None
            assert plateau.end_step is None
        else:
            assert plateau.end_tokens == pytest.approx(end, abs=50)


def test_steady_growth_has_none():
    sizes = curve((1, 1000))
    assert find_plateaus(np.arange(100.0), range(100), sizes) == []


def test_a_dictionary_that_never_grows_is_one_plateau():
    (plateau,) = find_plateaus(np.arange(100.0), range(100), np.full(100, 7.0))
    assert (plateau.start_tokens, plateau.end_tokens) == (0, None)


def test_an_empty_dictionary_is_not_at_rest():
    assert find_plateaus(np.arange(100.0), range(100), np.zeros(100)) == []


def test_the_plateau_schedule_comes_to_rest_where_its_formula_says():
    """`t N / (t + N)` grows in a window w by the factor (t + w)(t + N) / (t (t + w + N)): solve for 1.02."""
    capacity, total = 100.0, 20_000.0
    tokens = np.linspace(0, total, 2001)
    sizes = tokens * capacity / (tokens + capacity)
    window = 0.1 * total
    growth = (tokens[1:] + window) * (tokens[1:] + capacity) / (tokens[1:] * (tokens[1:] + window + capacity))
    expected = tokens[1:][growth < 1.02][0]
    (plateau,) = find_plateaus(tokens, range(2001), sizes)
    assert plateau.start_tokens == pytest.approx(expected, abs=10)


@pytest.mark.parametrize("size", [0, 1])
def test_too_short_a_curve_has_none(size):
    assert find_plateaus(np.arange(float(size)), range(size), np.ones(size)) == []


@given(st.lists(st.floats(0, 100), min_size=2, max_size=60))
def test_plateaus_are_in_order_and_apart(steps):
    sizes = np.cumsum(steps)
    plateaus = find_plateaus(np.arange(float(len(sizes))), range(len(sizes)), sizes)
    for first, second in itertools.pairwise(plateaus):
        assert first.end_tokens is not None
        assert first.start_tokens < second.start_tokens
    assert all(p.end_tokens is None or p.end_tokens > p.start_tokens for p in plateaus)


def test_tokens_are_counted_across_resets():
    assert cumulative([1, 2, 3, 1, 2]) == [1, 2, 3, 4, 5]
