"""`docs/files.md` against what reads the files: every key is described, and every example is a file that is shipped."""

import dataclasses
import re
from pathlib import Path

import pytest

from cl_ovq.cli.listing import describe
from cl_ovq.config.schema import SCALARS
from cl_ovq.config.schema import SECTIONS as OF_EXPERIMENT
from cl_ovq.studies.files import Tuning, _TopKeys
from cl_ovq.studies.published import KEYS
from cl_ovq.sweeps.schema import SCHEDULERS, SEARCHES, TopKeys
from cl_ovq.sweeps.schema import SECTIONS as OF_SWEEP
from cl_ovq.sweeps.space import LISTS, RANGES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
PARTS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def keys(part):
    """The first cell of every row of a part's tables."""
    return set(re.findall(r"^\| `(\w+)` \|", PARTS[part], re.MULTILINE))


def names(of):
    return {field.name for field in dataclasses.fields(of)}


def test_every_example_is_a_file_that_is_shipped():
    found = re.findall(r"^```yaml\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert [path.partition("/")[0] for path, _ in found] == ["experiments", "experiments", "ray_configs", "experiments"]
    for path, content in found:
        assert content == (ROOT / path).read_text(encoding="utf-8"), path


def test_an_experiment():
    opened = {"dictionary", "memory", "learner"}  # by parts
    assert keys("An experiment") == set(OF_EXPERIMENT) | opened
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", PARTS["An experiment"], re.MULTILINE))
    for section, of in OF_EXPERIMENT.items():
        assert set(re.findall(r"`(\w+)`", rows[section])) == names(of), section
    beside = PARTS["An experiment"].partition("beside the sections:")[2]
    assert set(re.findall(r"`(\w+)`", beside)) == {field.name for field in SCALARS}


def test_a_study():
    assert keys("A study") == names(_TopKeys) | names(Tuning)


def test_a_sweep():
    assert keys("A sweep") == names(TopKeys) | set(OF_SWEEP)
    assert set(re.findall(r"^\| `\{(\w+): ", PARTS["A sweep"], re.MULTILINE)) == {*LISTS, *RANGES}
    for name in (*SEARCHES, *SCHEDULERS):
        assert f"`{name}`" in PARTS["A sweep"]


@pytest.mark.parametrize("section", OF_SWEEP)
def test_a_section_of_a_sweep(section):
    """Its fields in their order, each with the default that it has."""
    rows = re.findall(rf"^\| `{section}` \| `(\w+)` \| .* \| `(.*)` \|$", PARTS["A sweep"], re.MULTILINE)
    expected = [
        (field.name, describe(field).rpartition("default ")[2]) for field in dataclasses.fields(OF_SWEEP[section])
    ]
    assert rows == expected


def test_a_published_number():
    assert keys("A published number") == set(KEYS)


def test_weights_of_a_learner(tmp_path):
    import torch

    from cl_ovq.in_context.weight_files import write_weights

    write_weights(torch.nn.Linear(1, 1), tmp_path / "weights.pt", {}, 0)
    assert keys("A learner's weights") == torch.load(tmp_path / "weights.pt", weights_only=True).keys()
