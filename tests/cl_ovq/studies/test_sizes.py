"""The figure of accuracy over bytes."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from study_helpers import run

from cl_ovq.runs.result import carried_bytes
from cl_ovq.studies.sizes import sizes_figure

STUDY = """
title: Sizes
seeds: 2
set: {{threads: 1, tracking.enabled: false, strategy.epochs: 1}}
grids:
- encoder: &encoder
    pixels: {{experiment: {tiny}, model.name: pixels}}
    convolutions: {{experiment: {tiny}, model.name: random_convolution, model.width: 2}}
  method:
    kNN: {{strategy.name: knn}}
  budget:
    large: {{strategy.capacity: 200}}
    small: {{strategy.capacity: 20}}
- encoder: *encoder
  method:
    joint: {{strategy.name: joint}}
  budget:
    all data: {{}}
"""


@pytest.fixture(scope="module")
def found(tiny_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    (folder / "sizes.yaml").write_text(STUDY.format(tiny=tiny_path))
    return run(folder / "sizes.yaml", folder / "runs")[0]


def test_a_line_joins_the_budgets_of_a_method(found):
    figure = sizes_figure(found)
    assert [axes.get_title() for axes in figure.axes] == ["pixels", "convolutions"]
    for axes in figure.axes:
        rows = [row for row in found.rows if row.labels["encoder"] == axes.get_title()]
        by_size = {row.mean(carried_bytes): row for row in rows if row.labels["method"] == "kNN"}
        ((line, *_),) = axes.containers
        assert line.get_xdata().tolist() == sorted(by_size)
        means = [np.mean(list(by_size[size].values("accuracy").values())) for size in sorted(by_size)]
        np.testing.assert_allclose(np.array(line.get_ydata(), dtype=float), means)
        (joint,) = [row for row in rows if row.labels["method"] == "joint"]
        across = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert [line.get_ydata()[0] for line in across] == [
            pytest.approx(np.mean(list(joint.values("accuracy").values())))
        ]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"kNN", "joint"}


def test_rows_whose_bytes_are_unknown_are_said_to_be_so(found):
    rows = []
    for row in found.rows:
        unknown = {"method_bytes": None} if row.labels["method"] == "kNN" else {}
        runs = [replace(run, provenance=run.provenance | unknown) for run in row.runs]
        rows.append(replace(row, runs=runs))
    changed = replace(found, rows=rows)
    figure = sizes_figure(changed)
    assert not any(axes.containers for axes in figure.axes)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"kNN (bytes unknown)", "joint"}
    assert {row["memory"] for row in csv.DictReader(io.StringIO(changed.table().to_csv()))} == {""}
    assert {row["memory_bytes"] for row in json.loads(changed.to_json())["rows"]} == {None, 0}


def test_a_study_with_budgets_writes_it(found, tmp_path):
    assert tmp_path / "sizes_bytes.png" in found.write(tmp_path)
    assert (tmp_path / "sizes_bytes.png").stat().st_size > 1000
