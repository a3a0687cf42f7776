"""Every option with every other: each pair of values runs, or is refused in one line.

A fault that needs two options at once hides from tests that change one at a time. Trying all combinations would take
tens of thousands of runs; a covering array of a few hundred holds every pair of values (Cohen et al. 1997, AETG).
"""

import dataclasses
import io
import itertools
import random
from unittest.mock import patch

import numpy as np
import pytest
from omegaconf import OmegaConf
from quick_settings import ANYWHERE, LEARNER
from rich.console import Console

from cl_ovq.config import from_dict
from cl_ovq.config.parts import current
from cl_ovq.errors import UserError
from cl_ovq.mixers import MIXERS
from cl_ovq.runs.checking import check_config
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.setup import load_stream
from cl_ovq.strategies import STRATEGIES
from streams.digits import read_digits
from streams.images import DATASETS, ImageDataset

HEADS = STRATEGIES.having(lambda strategy: strategy.is_head)
OPTIONS = {
    "strategy": [(f"strategy.name={name}",) for name in ANYWHERE],
    "head": [
        ("model.head=linear",),
        ("model.head=memory",),
        ("model.head=memory", "memory.calibrate=true"),
    ],
    "scenario": [(f"stream.scenario={name}_incremental",) for name in ("class", "domain", "task")],
    "scope": [(f"dictionary.scope={name}",) for name in ("sequence", "task", "stream")],
    "mixer": [(f"model.mixer={name}",) for name in MIXERS],
    "blur": [("stream.blur=0",), ("stream.blur=0.3",)],
    "encoder": [(f"model.train_encoder={name}",) for name in ("always", "first_experience", "never")],
}
MEMORY = OPTIONS["head"][1:]
REFUSED = {
    *itertools.product([("stream.scenario=task_incremental",)], [("stream.blur=0.3",)]),
    *itertools.product([(f"strategy.name={name}",) for name in (*HEADS, "early_stopping", "slca")], MEMORY),
    *itertools.product(
        [(f"strategy.name={name}",) for name in (*HEADS, "gdumb", "joint")],
        [("model.train_encoder=first_experience",)],
    ),
}
TINY = (
    "stream.validation_fraction=0.3",
    "checkpoint.enabled=false",
    "model.depth=1",
    "model.patch_size=4",
    "memory.capacity=20",
    "strategy.batch_size=40",
)
SMALL = (
    "strategy.buffer_size=12",
    "strategy.importance_samples=2",
    "strategy.candidates=15",
    "strategy.width=50",
    *LEARNER,
)


def covering_array(options, refused, seed):
    """Return rows of one value of each option, such that each pair of values of two options is in one of them.

    Greedy: a row starts at a pair that no row has, and takes option after option, in random order, the value that makes
    most new pairs with those that it has, the first of such. No row has a pair that is refused.
    """
    draw = random.Random(seed)
    pairs = itertools.combinations(options.values(), 2)
    missing = {pair for one, other in pairs for pair in itertools.product(one, other)} - refused
    rows = []
    while missing:
        row = list(draw.choice(sorted(missing)))
        for values in draw.sample(list(options.values()), len(options)):
            if not any(value in row for value in values):
                new = [_new_pairs(value, row, missing, refused) for value in values]
                row.append(values[new.index(max(new))])
        missing -= set(itertools.permutations(row, 2))
        rows.append([value for values in options.values() for value in values if value in row])
    return rows


def _new_pairs(value, row, missing, refused):
    pairs = [pair for other in row for pair in ((value, other), (other, value))]
    return -1 if refused.intersection(pairs) else len(missing.intersection(pairs))


ROWS = covering_array(OPTIONS, REFUSED, seed=0)


def test_every_pair_is_in_a_row():
    for one, other in itertools.combinations(OPTIONS.values(), 2):
        for pair in itertools.product(one, other):
            assert any(set(pair) <= set(row) for row in ROWS) != (pair in REFUSED), pair
    assert all(len(row) == len(OPTIONS) for row in ROWS)


def name_of(row):
    return "-".join(setting.split("=")[1] for value in row for setting in value)


@pytest.fixture
def configured(tiny_path):
    """`configured(row)`: a configuration with the values of a row, and small, without keys that its parts lack."""

    def configured(row):
        tree = OmegaConf.to_container(OmegaConf.load(tiny_path))
        for setting in (*TINY, *SMALL, *(setting for value in row for setting in value)):
            section, values = next(iter(OmegaConf.to_container(OmegaConf.from_dotlist([setting])).items()))
            tree[section] = tree.get(section, {}) | values
        return from_dict(current(tree))

    return configured


@pytest.fixture(scope="module", autouse=True)
def few_digits():
    """A hundred training samples in the place of the whole data set."""
    data = read_digits()
    few = dataclasses.replace(data, inputs=data.inputs[:200], targets=data.targets[:200])
    with patch.dict(DATASETS, digits=ImageDataset(lambda: few, "a few digits", installed=True)):
        yield


@pytest.fixture(scope="module")
def streams():
    return {}


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_it_runs(configured, row, tmp_path):
    config = configured(row)
    config.output_dir = str(tmp_path)
    slow = ("draw_figures", "code_revision", "package_versions")  # they take longer than the runs
    with patch.multiple("cl_ovq.runs.finish", **dict.fromkeys(slow, lambda *_: {})):
        result = run_experiment(config, Console(file=io.StringIO()))
    assert 0 <= result.metrics["accuracy"] <= 1
    assert np.isfinite(result.matrices["loss"][-1]).all()


@pytest.mark.parametrize("pair", sorted(REFUSED), ids=name_of)
def test_it_is_refused(configured, pair):
    config = configured(pair)
    with pytest.raises(UserError) as refusal:
        check_config(config), load_stream(config)
    assert "\n" not in str(refusal.value)
