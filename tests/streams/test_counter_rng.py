"""The same integers everywhere: against the published generator, and against what was drawn once."""

import numpy as np
import pytest

from streams.counter_rng import Draws


def test_bits_are_those_of_splitmix64():
    """The first outputs for the seed 1234567, as published with the reference implementation in C."""
    draws = Draws("any")
    draws._start = np.uint64(1234567)
    assert draws.bits(5).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_drawing_in_pieces_is_drawing_at_once():
    whole, pieces = Draws("a", 1), Draws("a", 1)
    expected = whole.bits(10)
    assert np.array_equal(np.concatenate([pieces.bits(3), pieces.bits(0), pieces.bits(7)]), expected)


def test_purposes_have_nothing_in_common():
    drawn = [Draws(*purpose).bits(1000) for purpose in (("a", 1), ("a", 2), ("b", 1), ("a/1", ""))]
    assert len(np.unique(np.concatenate(drawn))) == 4000


@pytest.mark.parametrize("bound", [1, 2, 7, 1000])
def test_numbers_below_a_bound_are_even(bound):
    drawn = Draws("even").below(bound, 20_000)
    assert drawn.dtype == np.int64
    counts = np.bincount(drawn, minlength=bound)
    assert len(counts) == bound
    expected = 20_000 / bound
    assert ((counts - expected) ** 2 / expected).sum() < bound + 6 * np.sqrt(2 * bound)  # chi-square


def test_bounds_may_differ_from_row_to_row():
    drawn = Draws("rows").below(np.array([1, 10, 100])[:, None], 3, 500)
    assert drawn.max(axis=1).tolist() == [0, 9, 99]


def test_orders_are_permutations_and_all_of_them_come():
    orders = Draws("orders").orders(600, 3)
    assert (np.sort(orders, axis=1) == np.arange(3)).all()
    assert len(np.unique(orders, axis=0)) == 6


def test_what_was_drawn_once_is_drawn_forever():
    draws = Draws("recall", 0)
    assert draws.below(1000, 6).tolist() == GOLDEN_NUMBERS
    assert draws.orders(1, 6)[0].tolist() == GOLDEN_ORDER


GOLDEN_NUMBERS = [593, 254, 35, 620, 652, 395]
GOLDEN_ORDER = [3, 1, 5, 2, 0, 4]
