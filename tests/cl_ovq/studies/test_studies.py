"""Studies on real runs: what is tuned, what is run, what is skipped, and what the table says."""

import copy
import io
import json
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import psutil
import pytest
from rich.console import Console
from scipy import stats

from cl_ovq.checkpoints.plugin import Checkpoints
from cl_ovq.config import to_dict
from cl_ovq.config.identity import fingerprint
from cl_ovq.errors import UserError
from cl_ovq.results import Result
from cl_ovq.studies import load_study, only, run_study
from cl_ovq.studies.lengths import comparable_rows, lengths_table

STUDY = """
title: Small
seeds: 2
set: {{threads: 1, tracking.enabled: false}}
tuning: {{seeds: [7], grid: {{optimizer.learning_rate: [1e-6, 1e-2]}}}}
refit: {{strategy: replay}}
grids:
- stream:
    digits: {{experiment: {tiny}}}
  model:
    mlp: {{model.name: mlp, model.depth: 1}}
  strategy:
    naive: {{strategy.name: naive, tune: null, optimizer.learning_rate: 1e-2}}
    replay: {{strategy.name: replay}}
"""


@pytest.fixture(scope="module")
def file(tiny_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("studies") / "small.yaml"
    path.write_text(STUDY.format(tiny=tiny_path))
    return path


def run(file, folder, *overrides, jobs=1):
    said = io.StringIO()
    return run_study(load_study(str(file), overrides), folder, Console(file=said), jobs=jobs), said.getvalue()


@pytest.fixture(scope="module")
def done(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return run(file, folder)[0], folder


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


def results(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("results.json")}


def test_tuning_is_on_validation_data_with_other_seeds_and_takes_the_best(done):
    result, folder = done
    tuned = [Result.read(path) for path in results(folder) if "validation" in path.parent.name]
    assert {run.config["seed"] for run in tuned} == {7}
    assert {run.config["evaluation"]["stream"] for run in tuned} == {"validation"}
    scores = {run.config["optimizer"]["learning_rate"]: run.metrics["accuracy"] for run in tuned}
    assert set(scores) == {1e-6, 1e-2}
    naive, replay = result.rows
    assert replay.chosen == {"optimizer.learning_rate": max(scores, key=scores.get)}
    assert naive.chosen == {}
    assert {run.config["evaluation"]["stream"] for row in result.rows for run in row.runs} == {"test"}
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
    json_path, markdown, figure = result.write(folder / "out")
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
    with pytest.raises(
        UserError, match=r"row 'regression': tuning\.metric: 'regression' has no accuracy: leave it out"
    ):
        load_study(str(sequences))


def test_a_row_without_validation_data_cannot_be_tuned(sequences):
    with pytest.raises(UserError, match=r"row 'recall': stream\.validation: 0 leaves no validation data"):
        load_study(str(sequences), ["stream.validation=0"])


def test_what_is_done_is_not_run_again_and_what_is_new_is(done, file):
    _, folder = done
    before = results(folder)
    assert len(before) == 2 + 2 + 2
    again, _ = run(file, folder)
    assert results(folder) == before
    more, _ = run(file, folder, "seeds=3")
    after = results(folder)
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 2
    assert [len(row.runs) for row in again.rows] == [2, 2]
    assert [len(row.runs) for row in more.rows] == [3, 3]


def test_every_run_is_named_as_it_ends(file, tmp_path):
    result, said = run(file, tmp_path, "seeds=1")
    lines = [line for line in said.splitlines() if " of 4: " in line]
    assert [line.partition(" ")[0] for line in lines] == ["1", "2", "3", "4"]
    naive, replay = (row.runs[0].metrics["accuracy"] for row in result.rows)
    assert lines[0] == f"1 of 4: digits, mlp, naive, seed 0, test: accuracy {naive:.4g}"
    rate = result.rows[1].chosen["optimizer.learning_rate"]
    assert (
        lines[3] == f"4 of 4: digits, mlp, replay, optimizer.learning_rate={rate}, seed 0, test: accuracy {replay:.4g}"
    )


def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(file, done, tmp_path):
    trained = []
    own = Checkpoints.after_training_iteration

    def note(self, strategy, **kwargs):
        own(self, strategy, **kwargs)
        trained.append(strategy.clock.train_exp_counter)
        if stop and trained[-1] == 1:
            raise KeyboardInterrupt

    with patch.object(Checkpoints, "after_training_iteration", note):
        stop = True
        with pytest.raises(KeyboardInterrupt):
            run(file, tmp_path, "seeds=1")
        assert not results(tmp_path)
        stop, begun = False, len(trained)
        result, _ = run(file, tmp_path, "seeds=1")
    assert trained[0] == 0
    assert trained[begun] == 1  # the first experience is not learned again
    assert [row.runs[0].matrix for row in result.rows] == [row.runs[0].matrix for row in done[0].rows]


@pytest.mark.slow  # every process imports for ten seconds
@pytest.mark.parametrize(("blow", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_what_runs_in_other_processes_ends_with_the_study(file, tmp_path, blow, code):
    endless = file.read_text().replace("set: {", "set: {strategy.epochs: 1000000, ")
    (tmp_path / "endless.yaml").write_text(endless)
    command = [sys.executable, "-c", "from cl_ovq.cli import main; main()", "study", "endless.yaml", "--jobs", "2"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as study:
        try:
            deadline = time.monotonic() + 120
            while len(list(tmp_path.glob("runs/studies/endless/*/*"))) < 2:
                assert study.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            workers = psutil.Process(study.pid).children(recursive=True)
            assert len(workers) >= 2
            study.send_signal(blow)
            _, error = study.communicate(timeout=60)
        finally:
            study.kill()
    assert study.returncode == code
    assert "Traceback" not in error
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


@pytest.mark.slow  # every process imports for ten seconds
def test_a_study_goes_on_without_a_process_that_was_killed(file, tmp_path):
    def kill():
        while not killed.is_set():
            time.sleep(0.1)
            for worker in multiprocessing.active_children() if list(tmp_path.glob("*/*")) else ():
                worker.kill()
                killed.set()

    killed = threading.Event()
    thief = threading.Thread(target=kill)
    thief.start()
    result, said = run(file, tmp_path, "seeds=1", jobs=2)
    thief.join()
    assert 1 <= len(result.failed) <= 2
    assert "terminated abruptly" in said
    assert result.rows


def test_reported_seeds_can_be_named(done, file):
    _, folder = done
    result, _ = run(file, folder, "seeds=[1, 4]")
    assert [[run.config["seed"] for run in row.runs] for row in result.rows] == [[1, 4]] * 2


@pytest.mark.slow  # every process imports for ten seconds
def test_a_run_in_a_process_of_its_own_gives_the_same(done, file, tmp_path):
    result, _ = done
    other, _ = run(file, tmp_path, jobs=2)
    assert [[run.matrix for run in row.runs] for row in other.rows] == [
        [run.matrix for run in row.runs] for row in result.rows
    ]


def test_a_run_that_fails_is_said_and_the_others_are_kept(tiny_path, tmp_path):
    path = tmp_path / "broken.yaml"
    text = STUDY.format(tiny=tiny_path).replace(
        "replay: {strategy.name: replay}", "odd: {model.name: patch_transformer, model.patch_size: 3}"
    )
    path.write_text(text.replace("refit: {strategy: replay}", ""))
    result, said = run(path, tmp_path / "runs", "seeds=1")
    assert [row.labels["strategy"] for row in result.rows] == ["naive"]
    assert "model.patch_size: 3 does not divide" in said
    assert len(result.failed) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tuning:", "tunin:", "unknown key of a study 'tunin': did you mean 'tuning'?"),
        ("seeds: [7],", "protocol: frist, seeds: [7],", "unknown protocol at tuning.protocol 'frist'"),
        ("seeds: [7],", "protocol: [end], seeds: [7],", r"unknown protocol at tuning.protocol '\['end'\]'"),
        ("seeds: [7],", "metric: {{a: 1}}, seeds: [7],", "metric at tuning.metric "),
        ("seeds: [7],", "over_lengths: 3, seeds: [7],", "tuning.over_lengths: 3 is neither true nor false"),
        ("seeds: [7],", "metric: accuracy, over_lengths: true, seeds: [7],", "are two ways to choose"),
        ("seeds: [7],", "experiences: 2, seeds: [7],", "tuning.experiences: first_k_experiences needs a number"),
        ("[7]", "[0, 7]", r"tuning.seeds: \[0\] are reported too"),
        ("seeds: 2", "seeds: -1", "seeds: -1 is neither a positive whole number nor a list of seeds"),
        ("seeds: 2", "seeds: true", "seeds: True is neither"),
        ("seeds: 2", "seeds: [3, 3]", r"seeds: \[3, 3\] is not a list of different whole numbers"),
        ("seeds: 2", "seeds: [3, -1]", r"seeds: \[3, -1\] is not a list of different whole numbers"),
        ("seeds: 2", "seeds: []", r"seeds: \[\] is not a list of different whole numbers"),
        ("seeds: 2", "seeds: [5, 7]", r"tuning.seeds: \[7\] are reported too"),
        ("model.name: mlp", "model.name: mpl", "row 'digits, mlp, naive': model.name: unknown model 'mpl'"),
        (
            "model.depth: 1",
            "model.dept: 1",
            "row 'digits, mlp, naive': unknown key 'model.dept': did you mean 'model.depth'?",
        ),
        ("[1e-6, 1e-2]", "1e-2", "tuning.grid.optimizer.learning_rate: 0.01 is not a list of values"),
        ("refit: {{strategy: replay}}", "refit: {{strategy: replai}}", "refit: no row has the labels"),
        ("    replay:", "    naive :", None),
        (
            "{{seeds: [7],",
            "{{metric: acuracy, seeds: [7],",
            "metric at tuning.metric 'acuracy': did you mean 'accuracy'",
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


def test_results_older_than_a_key_count_with_its_default(tiny):
    new = to_dict(tiny("dictionary.capacity=24"))
    old = copy.deepcopy(new) | {"threads": 2}
    assert old["dictionary"].pop("half_life") is None  # a key that the schema did not have then
    assert fingerprint(old) == fingerprint(new)
    assert fingerprint(old) != fingerprint(to_dict(tiny("dictionary.half_life=100")))
    assert fingerprint(old) != fingerprint(to_dict(tiny("dictionary.capacity=25")))


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


LENGTHS = """
title: Recall
seeds: 2
grids:
- task:
    recall: {{experiment: {recall}}}
  mixer:
    softmax: {{model.mixer: softmax}}
    OVQ: {{model.mixer: ovq, evaluation.capacities: [2, 8]}}
"""
RECALL = """
stream: {name: recall, experiences: 1, shift: none, length: 16, pairs: 2, keys: 8, values: 4, train: 30, test: 6}
model: {name: sequence_model, width: 8, depth: 1, heads: 1}
dictionary: {scope: sequence, capacity: 8, chunk_size: 4}
strategy: {batch_size: 10}
evaluation: {lengths: [16, 64], length_tokens: 640}
tracking: {enabled: false}
"""


def test_rows_over_length_are_means_over_seeds(tmp_path):
    (tmp_path / "recall.yaml").write_text(RECALL)
    (tmp_path / "lengths.yaml").write_text(LENGTHS.format(recall=tmp_path / "recall.yaml"))
    result, _ = run(tmp_path / "lengths.yaml", tmp_path / "runs")
    paths = result.write(tmp_path / "out")
    assert [path.name for path in paths[2:]] == ["lengths.png", "lengths_recall.png"]
    text = paths[1].read_text()
    assert "| recall: accuracy over tokens | 16 | 64 |" in text
    assert "Trained at 16 tokens." in text
    for row, name in zip(result.rows, ("softmax", "OVQ"), strict=True):
        values = [one.lengths[1]["value"] for one in row.runs]
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert line.split("|")[3].strip().startswith(f"{np.mean(values):.3f} +- ")
    saved = json.loads(paths[0].read_text())["rows"][1]["runs"][1]["lengths"]
    assert [(at["tokens"], at["value"]) for at in saved] == [
        (at["tokens"], at["value"]) for at in result.rows[1].runs[1].lengths
    ]
    with_capacities = result.rows[1].runs[1].capacities
    assert [record["value"] for record in json.loads(paths[0].read_text())["rows"][1]["runs"][1]["capacities"]] == [
        record["value"] for record in with_capacities
    ]
    table = text[text.index("| recall, OVQ: slots | accuracy at 16 tokens | accuracy at 64 tokens | state bytes |") :]
    for line, capacity in zip(table.splitlines()[2:], (2, 8), strict=True):
        found = [
            [record for record in one.capacities if (record["capacity"], record["tokens"]) == (capacity, 64)]
            for one in result.rows[1].runs
        ]
        mean = np.mean([record["value"] for (record,) in found])
        assert line.startswith(f"| {capacity} | ")
        assert line.split("|")[3].strip().startswith(f"{mean:.3f} +- ")
        assert line.split("|")[4].strip() == f"{found[0][0]['state_bytes']:,}"
    softmax, ovq = (row.runs[0].lengths for row in result.rows)
    assert softmax[1]["state_bytes"] > softmax[0]["state_bytes"]
    assert ovq[1]["state_bytes"] == ovq[0]["state_bytes"]
    for row in result.rows:  # as if they had been evaluated at one length each, and not at the same
        row.runs[:] = [replace(one, lengths=one.lengths[: 1 if row is result.rows[0] else 2]) for one in row.runs]
    groups = comparable_rows(result.rows)
    assert {name: [row.labels["mixer"] for row in rows] for name, rows in groups.items()} == {
        "recall_16": ["softmax"],
        "recall_16_64": ["OVQ"],
    }
    assert "| recall, softmax |" in lengths_table("recall_16", groups["recall_16"])
    assert all(path.exists() for path in result.write(tmp_path / "apart"))
