"""The curve over the experiences learned, of rows that are evaluated after some of them."""

import csv
import io

import numpy as np
import pytest
from scipy import stats
from study_helpers import run

from cl_ovq.studies.along import along_figure, along_table, rows_along

STUDY = """
title: Along
seeds: 2
set: {{threads: 1, tracking.enabled: false, strategy.epochs: 1, model.name: pixels, stream.experiences: 5}}
grids:
- method:
    kNN: {{experiment: {tiny}, strategy.name: knn, evaluation.rows: [1, 3]}}
    nearest mean: {{experiment: {tiny}, strategy.name: ncm, evaluation.rows: [3]}}
  budget:
    some: {{}}
    the same: {{}}
- method:
    whole: {{experiment: {tiny}, strategy.name: ncm}}
  budget:
    some: {{}}
"""
MOMENTS = {"kNN": [1, 3, 5], "nearest mean": [3, 5]}


@pytest.fixture(scope="module")
def found(tiny_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("along")
    (folder / "along.yaml").write_text(STUDY.format(tiny=tiny_path))
    return run(folder / "along.yaml", folder / "runs")[0]


def by_hand(row, learned):
    return [np.mean(one.matrix[learned][:learned]) for one in row.runs]


def test_the_table_has_the_mean_over_what_was_learned(found):
    rows = rows_along(found.rows)
    assert [row.labels["method"] for row in rows] == [name for name in MOMENTS for _ in range(2)]
    lines = list(csv.reader(io.StringIO(along_table(rows).to_csv())))
    names = lines[0]
    for row, line in zip(rows, lines[1:], strict=True):
        cells = dict(zip(names, line, strict=True))
        for learned in (1, 3, 5):
            if learned not in MOMENTS[row.labels["method"]]:
                assert cells[str(learned)] == ""
                continue
            values = by_hand(row, learned)
            assert float(cells[str(learned)]) == pytest.approx(np.mean(values))
            half = stats.t.ppf(0.975, 1) * np.std(values, ddof=1) / 2**0.5
            spread = names[names.index(str(learned)) + 1]
            assert float(cells[spread]) == pytest.approx(half)


def test_a_line_is_a_method_and_a_panel_a_budget(found):
    rows = rows_along(found.rows)
    figure = along_figure(rows, "Along")
    assert [axes.get_title() for axes in figure.axes] == ["some", "the same"]
    for axes in figure.axes:
        for name, (line, *_) in zip(MOMENTS, axes.containers, strict=True):
            (row,) = [one for one in rows if one.labels == {"method": name, "budget": axes.get_title()}]
            assert line.get_xdata().tolist() == MOMENTS[name]
            expected = [np.mean(by_hand(row, learned)) for learned in MOMENTS[name]]
            np.testing.assert_allclose(np.array(line.get_ydata(), dtype=float), expected)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(MOMENTS)


def test_only_a_study_with_such_rows_writes_it(found, tmp_path):
    written = {path.name for path in found.write(tmp_path)}
    assert {"along_along.png", "along_along.csv"} <= written
    drawn = {path.suffix: path for path in found.write(tmp_path, "svg") if "along_along" in path.name}
    assert drawn[".svg"].read_text().startswith("<?xml")
    assert "after experiences" in (tmp_path / "along.md").read_text()
    for method in ("whole", "nearest mean"):  # after every experience, and at the end alone
        assert rows_along([row for row in found.rows if row.labels["method"] == method]) == []
