"""Studies on real runs: how they are read, what is tuned, and what the table says."""

import json

import numpy as np
import pytest
from scipy import stats
from study_helpers import STUDY, results, run

from cl_ovq.errors import UserError
from cl_ovq.runs.result import Result
from cl_ovq.studies import load_study, only


def test_intransigence_against_a_row(file, done):
    _, folder = done
    path = file.parent / "reference.yaml"
    path.write_text(file.read_text().replace("refit: {strategy: replay}", "reference: {strategy: replay}"))
    result, _ = run(path, folder)
    naive, replay = result.rows
    own = [[run.matrix[j + 1][j] for j in range(2)] for run in naive.runs]
    best = [[run.matrix[j + 1][j] for j in range(2)] for run in replay.runs]
    assert result.metric(naive, "intransigence").mean == pytest.approx(np.mean(best) - np.mean(own))
    assert result.metric(replay, "intransigence") is None
    assert "intransigence" in result.to_markdown()


def test_what_is_measured_inside_experiences_has_its_columns(file, done, tmp_path):
    path = tmp_path / "inside.yaml"
    path.write_text(file.read_text().replace("set: {", "set: {evaluation.every_steps: 7, "))
    result, _ = run(path, tmp_path / "runs", "seeds=1")
    head = result.to_markdown().splitlines()[0]
    assert "| average anytime accuracy | worst-case accuracy |" in head
    found = result.rows[0].runs[0].metrics["worst_case_accuracy"]
    assert result.metric(result.rows[0], "worst_case_accuracy").mean == pytest.approx(found)
    assert "worst-case" not in done[0].to_markdown()


def test_first_experiences_only_are_seen_where_hyper_parameters_are_chosen(file, tmp_path):
    path = tmp_path / "first.yaml"
    path.write_text(
        file.read_text().replace("seeds: [7],", "protocol: first_k_experiences, experiences: 1, seeds: [7],")
    )
    result, _ = run(path, tmp_path / "runs", "seeds=1")
    tuned = [Result.read(path) for path in results(tmp_path) if "validation" in path.parent.name]
    assert len(tuned) == 2
    assert [np.shape(run.matrix) for run in tuned] == [(2, 1)] * 2
    assert [np.shape(run.matrix) for row in result.rows for run in row.runs] == [(3, 2)] * 2


def test_tuning_is_on_validation_data_with_other_seeds_and_takes_the_best(done):
    result, folder = done
    tuned = [Result.read(path) for path in results(folder) if "validation" in path.parent.name]
    assert {run.config["seed"] for run in tuned} == {7}
    assert {run.config["evaluation"]["split"] for run in tuned} == {"validation"}
    scores = {run.config["optimizer"]["learning_rate"]: run.metrics["accuracy"] for run in tuned}
    assert set(scores) == {1e-6, 1e-2}
    naive, replay = result.rows
    assert replay.chosen == {"optimizer.learning_rate": max(scores, key=scores.get)}
    assert naive.chosen == {}
    assert {run.config["evaluation"]["split"] for row in result.rows for run in row.runs} == {"test"}
    assert [[run.config["seed"] for run in row.runs] for row in result.rows] == [[0, 1]] * 2


def test_the_table_holds_mean_and_interval_over_seeds(done):
    result, folder = done
    naive, replay = result.rows
    values = [run.metrics["accuracy"] for run in replay.runs]
    found = result.metric(replay, "accuracy")
    assert found.mean == pytest.approx(np.mean(values))
    low, high = stats.t.interval(0.95, 1, loc=np.mean(values), scale=stats.sem(values))
    assert found.interval == pytest.approx((high - low) / 2)
    beyond = result.metric(naive, "forgetting_beyond_refit")
    differences = [
        a.metrics["forgetting"] - b.metrics["forgetting"] for a, b in zip(naive.runs, replay.runs, strict=True)
    ]
    assert beyond.mean == pytest.approx(np.mean(differences))
    assert result.metric(replay, "forgetting_beyond_refit") is None
    json_path, markdown, _, _, figure = result.write(folder / "out")
    saved = json.loads(json_path.read_text())
    assert saved["rows"][1]["metrics"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert f"{np.mean(values):.3f}" in markdown.read_text()
    assert figure.read_bytes().startswith(b"\x89PNG")


SEQUENCES = """
seeds: 1
set: {threads: 1, tracking.enabled: false, model.name: sequence_model, model.width: 8, model.depth: 1, model.heads: 1,
      model.mixer: linear, stream.train: 64, stream.validation: 8, stream.test: 8}
tuning: {seeds: [7], grid: {optimizer.learning_rate: [1e-7, 3e-2]}}
grids:
- task:
    recall: {experiment: RECALL}
    regression: {experiment: REGRESSION}
"""


@pytest.fixture
def sequences(tmp_path):
    """The file of a study of a stream with an accuracy and one with a loss."""
    recall, regression = tmp_path / "recall.yaml", tmp_path / "regression.yaml"
    recall.write_text("stream: {name: recall, experiences: 1, length: 16, pairs: 2}")
    regression.write_text("stream: {name: regression, experiences: 1, examples: 3, questions: 2}")
    path = tmp_path / "sequences.yaml"
    path.write_text(SEQUENCES.replace("RECALL", str(recall)).replace("REGRESSION", str(regression)))
    return path


def test_every_row_is_tuned_by_the_quantity_of_its_own_stream(sequences, tmp_path):
    result, _ = run(sequences, tmp_path / "runs")
    recall, regression = result.rows
    for row, better in ((recall, max), (regression, min)):
        assert json.loads(better(row.scores, key=row.scores.get)) == row.chosen, row.labels
        assert len(set(row.scores.values())) == 2 or row is recall  # too short to recall anything
    assert list(result.metrics.values()) == [
        "average accuracy",
        "average squared error",
        "forgetting",
        "learning accuracy",
        "learning squared error",
    ]
    head, _, *body = [line.split("|")[1:-1] for line in result.to_markdown().splitlines()]
    assert [cell.strip() for cell in head[1:3]] == ["average accuracy", "average squared error"]
    assert [[cell.strip() == "-" for cell in row[1:3]] for row in body] == [[False, True], [True, False]]
    assert float(body[1][2]) == pytest.approx(regression.runs[0].metrics["squared_error"], abs=1e-3)
    assert len(result.to_figure().axes) == 3


def test_rows_may_be_tuned_by_their_mean_over_lengths(sequences, tmp_path):
    text = sequences.read_text().replace("seeds: [7]", "over_lengths: true, seeds: [7]")
    sequences.write_text(text)
    with pytest.raises(UserError, match=r"row 'recall': tuning\.over_lengths: evaluation\.lengths is empty"):
        load_study(str(sequences))
    text = text.replace("set: {", "set: {evaluation.lengths: [24, 32], evaluation.length_tokens: 96, ")
    sequences.write_text(text)
    result, _ = run(sequences, tmp_path / "runs")
    tuned = [Result.read(path) for path in results(tmp_path) if "validation" in path.parent.name]
    for row, better in zip(result.rows, (max, min), strict=True):
        scores = {
            run.config["optimizer"]["learning_rate"]: np.mean([record["value"] for record in run.lengths])
            for run in tuned
            if run.config["stream"]["name"] == row.labels["task"]
        }
        assert {json.loads(point)["optimizer.learning_rate"]: score for point, score in row.scores.items()} == scores
        assert scores[row.chosen["optimizer.learning_rate"]] == better(scores.values())
    assert len(set(scores.values())) == 2  # of the regression


def test_a_metric_that_a_row_does_not_have_cannot_tune_it(sequences):
    sequences.write_text(sequences.read_text().replace("seeds: [7]", "metric: accuracy, seeds: [7]"))
    with pytest.raises(UserError, match=r"row 'regression': tuning\.metric: 'regression' has no accuracy: remove it"):
        load_study(str(sequences))


def test_a_row_without_validation_data_cannot_be_tuned(sequences):
    with pytest.raises(UserError, match=r"row 'recall': stream\.validation: 0 leaves no validation data"):
        load_study(str(sequences), ["stream.validation=0"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tuning:", "tunin:", "unknown key of a study 'tunin': did you mean 'tuning'?"),
        ("seeds: [7],", "protocol: frist, seeds: [7],", "tuning.protocol: unknown choice 'frist'"),
        ("seeds: [7],", "protocol: [end], seeds: [7],", r"tuning.protocol: \['end'\] is not text"),
        ("seeds: [7],", "metric: {{a: 1}}, seeds: [7],", "tuning.metric: {'a': 1} is not text or null"),
        ("seeds: [7],", "over_lengths: 3, seeds: [7],", "tuning.over_lengths: 3 is not true or false"),
        ("seeds: [7],", "metric: accuracy, over_lengths: true, seeds: [7],", "cannot be combined"),
        ("seeds: [7],", "experiences: 2, seeds: [7],", "tuning.experiences: required with first_k_experiences"),
        ("[7]", "[0, 7]", r"tuning.seeds: \[0\] are also reported"),
        ("seeds: 2", "seeds: -1", "seeds: -1 is neither a positive integer nor a list of seeds"),
        ("seeds: 2", "seeds: true", "seeds: True is neither"),
        ("seeds: 2", "seeds: [3, 3]", "seeds: 3 is listed twice"),
        ("seeds: 2", "seeds: [3, -1]", r"seeds: \[3, -1\] is not a list of non-negative 64-bit integers"),
        ("seeds: 2", "seeds: []", "seeds: give at least one seed"),
        ("seeds: 2", "seeds: [5, 7]", r"tuning.seeds: \[7\] are also reported"),
        ("model.name: mlp", "model.name: mpl", "row 'digits, mlp, naive': model.name: unknown model 'mpl'"),
        (
            "model.depth: 1",
            "model.dept: 1",
            "row 'digits, mlp, naive': unknown key 'model.dept': did you mean 'model.depth'?",
        ),
        ("[1e-6, 1e-2]", "1e-2", "tuning.grid.optimizer.learning_rate: 0.01 is not a list"),
        ("refit: {{strategy: replay}}", "refit: {{strategy: replai}}", "refit: no row has the labels"),
        ("    replay:", "    naive :", None),
        (
            "{{seeds: [7],",
            "{{metric: acuracy, seeds: [7],",
            "unknown metric at tuning.metric 'acuracy': did you mean 'accuracy'",
        ),
    ],
)
def test_a_mistake_is_one_line(tiny_path, tmp_path, old, new, message):
    path = tmp_path / "mistake.yaml"
    assert old in STUDY
    path.write_text(STUDY.replace(old, new).format(tiny=tiny_path))
    with pytest.raises(UserError, match=message):
        load_study(str(path))


def test_a_broken_override_is_one_line(file):
    for override in ("seeds=[", "seeds", "=3"):
        with pytest.raises(UserError, match="override"):
            load_study(str(file), [override])


def test_an_unknown_study_is_named():
    with pytest.raises(UserError, match=r"no study 'dictionarys': did you mean 'dictionaries'\?"):
        load_study("dictionarys")


def test_only_some_rows():
    study = load_study("paper")
    picked = only(study, ["recall", "OVQ", "softmax"])
    assert [row.labels for row in picked.rows] == [{"task": "recall", "mixer": mixer} for mixer in ("softmax", "OVQ")]
    assert len(only(study, ["OVQ"]).rows) == 4
    assert only(study, []).rows == study.rows
    with pytest.raises(UserError, match="unknown label of a row 'recal': did you mean 'recall'"):
        only(study, ["recal"])
    with pytest.raises(UserError, match="no row of study 'dictionaries' has the labels memory, MLP, joint together"):
        only(load_study("dictionaries"), ["memory, MLP", "joint"])
