"""From the run's seed to the seeds of its parts."""

import random

import numpy as np
import pytest
import torch

from cl_ovq.training import derive_seed, seed_everything


@pytest.mark.parametrize(
    ("seed", "purpose", "expected"),
    [(0, "stream", 3800541093), (0, "model", 2588156980), (0, "training", 1607106499), (7, "training", 238054130)],
)
def test_derived_seeds_never_change(seed, purpose, expected):
    assert derive_seed(seed, purpose) == expected


def test_derived_seeds_differ():
    seeds = [derive_seed(seed, purpose) for seed in range(200) for purpose in ("stream", "model", "training")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert derive_seed(1, "1/a") != derive_seed(11, "/a")


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_every_generator_is_seeded():
    seed_everything(3, "model")
    first = draws()
    seed_everything(3, "model")
    assert draws() == first
    for seed, purpose in ((4, "model"), (3, "training")):
        seed_everything(seed, purpose)
        assert not set(draws()) & set(first)
