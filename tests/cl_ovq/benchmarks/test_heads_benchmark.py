"""What `cl-ovq bench heads` measures, at a small size."""

import json

import pytest
from rich.console import Console

from cl_ovq.benchmarks.heads import AVALANCHE, Setting, heads_table, measure_heads

SMALL = Setting(samples=600, features=8, classes=4, batch=50, seconds=2, width=30)


@pytest.fixture(scope="module")
def measured():
    return measure_heads(SMALL, Console(quiet=True))


def test_peers_that_are_the_same_method_are_as_accurate(measured):
    rows = {row["method"]: row for row in measured["rows"]}
    pairs = {row["method"]: row["beside"] for row in measured["rows"] if row["beside"]}
    assert pairs == {
        "ridge": "scikit-learn Ridge",
        "slda": AVALANCHE,
        "ncm": "scikit-learn NearestCentroid",
        "knn": "scikit-learn KNeighborsClassifier",
    }
    for name, peer in pairs.items():
        assert rows[name]["accuracy"] == pytest.approx(rows[peer]["accuracy"], abs=0.02), name
        assert rows[name]["learned"] == rows[peer]["learned"] == 600
    for row in measured["rows"]:
        assert row["learn"] > 0
        assert row["predict"] > 0
        assert 0.4 < row["accuracy"] < 0.999, row["method"]
        assert (row["bytes"] is None) == (row["method"].startswith(("scikit", "Avalanche")))


def test_ratios_are_of_speeds(measured):
    table = heads_table(measured)
    rows = {row["method"]: row for row in measured["rows"]}
    cells = next(row for row in table.rows if row[0][0].text == "ridge")
    expected = rows["ridge"]["learn"] / rows["scikit-learn Ridge"]["learn"]
    assert cells[7][0].value == pytest.approx(expected)
    assert json.loads(json.dumps(measured))["setting"]["classes"] == 4


def test_what_takes_too_long_is_cut_short_and_says_so():
    found = measure_heads(
        Setting(samples=200, features=4, classes=2, batch=20, seconds=0, width=8), Console(quiet=True)
    )
    row = next(row for row in found["rows"] if row["method"] == "memory head")
    assert row["learned"] == 20
    assert "memory head (of 20)" in heads_table(found).to_markdown()
