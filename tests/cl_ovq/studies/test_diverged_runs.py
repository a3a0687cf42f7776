"""What a study, and the published numbers, make of runs that diverge."""

import io
import json

from rich.console import Console
from study_helpers import run

from cl_ovq.studies.published import load_published, reproduce

GRID = """
title: Wild
seeds: 1
set: {{threads: 1, tracking.enabled: false, optimizer.name: sgd, model.mixer: softmax}}
tuning: {{seeds: [7], grid: {{optimizer.learning_rate: {rates}}}}}
grids:
- stream:
    digits: {{experiment: {tiny}}}
  strategy:
    sound: {{strategy.name: naive, tune: null, optimizer.learning_rate: 1e-2}}
    tuned: {{strategy.name: replay}}
    lost: {{strategy.name: naive, tune: null, optimizer.learning_rate: 1e9}}
"""


def test_a_point_that_diverges_is_never_chosen_and_a_diverged_row_is_counted(tiny_path, tmp_path):
    path = tmp_path / "wild.yaml"
    path.write_text(GRID.format(tiny=tiny_path, rates="[1e9, 1e-2]"))
    result, said = run(path, tmp_path / "runs")
    _, tuned, lost = result.rows
    assert tuned.chosen == {"optimizer.learning_rate": 1e-2}
    assert tuned.scores['{"optimizer.learning_rate": 1000000000.0}'] is None
    assert "diverged in step" in said
    assert [len(row.sound) for row in result.rows] == [1, 1, 0]
    assert result.metric(lost, "accuracy") is None
    head, _, *body = (line.strip("| ").split(" | ") for line in result.to_markdown().strip().splitlines())
    column = head.index("diverged")
    assert [cells[column] for cells in body] == ["0 of 1", "0 of 1", "1 of 1"]
    assert body[2][head.index("average accuracy")] == "-"
    rows = json.loads(result.to_json())["rows"]
    assert [row["runs"][0]["diverged"] is not None for row in rows] == [False, False, True]
    assert result.failed == {}
    result.write(tmp_path / "written")


def test_a_row_of_which_every_point_diverges_is_not_passed_over(tiny_path, tmp_path):
    path = tmp_path / "wild.yaml"
    path.write_text(GRID.format(tiny=tiny_path, rates="[1e9, 1e8]"))
    result, said = run(path, tmp_path / "runs")
    assert [row.labels["strategy"] for row in result.rows] == ["sound", "lost"]
    assert "not reported: digits, tuned: a tuning run diverged at every point of its grid" in said
    assert list(result.failed) == ["digits, tuned"]


def test_a_published_number_whose_runs_diverge_is_not_reproduced(tiny_path, tmp_path):
    path = tmp_path / "wild.yaml"
    path.write_text(
        f"title: wild\nsource: somebody\ntarget: {{accuracy: 0.1, within: 0.01}}\nexperiment: {tiny_path}\n"
        "set: {strategy.name: naive, model.mixer: softmax, optimizer.name: sgd, optimizer.learning_rate: 1e9}\n"
    )
    (found,) = reproduce(load_published([path]), 1, tmp_path / "runs", Console(file=io.StringIO()))
    assert (found.verdict, found.measured, found.diverged) == ("diverged", None, 1)
