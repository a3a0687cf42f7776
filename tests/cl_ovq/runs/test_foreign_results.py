"""Results that are well-formed and wrong: one line that names the field, or accepted where they are right."""

import copy
import dataclasses
import functools
import io
import json
import operator
import os

import pytest
from mutations import mutations, paths, refusal
from rich.console import Console

from cl_ovq.comparison import compare, load_groups
from cl_ovq.comparison.figures import all_figures
from cl_ovq.comparison.pages import to_json, to_table
from cl_ovq.errors import UserError
from cl_ovq.evaluation.dictionaries import DictionaryRecord
from cl_ovq.evaluation.matrix import Point
from cl_ovq.evaluation.plateaus import Plateau
from cl_ovq.evaluation.records import AnytimeRecord, Dictionaries, GrowthRecord, PlateauRecord, SlotRecord
from cl_ovq.evaluation.slot_statistics import SlotStatistics
from cl_ovq.report import runs as report
from cl_ovq.runs.result import VERSION, Provenance, Result, carried_bytes
from cl_ovq.sweeps.records import Record, read_records
from cl_ovq.tracking.notes import run_note


@pytest.fixture(scope="module")
def rich_result(run):
    """The plain data of a run that has something in every field."""
    return json.loads(run("evaluation.every_steps=20").to_json())


def use(path, figures):
    """Do with results what commands do with them."""
    result = Result.read(path)
    carried_bytes(result)
    result.to_json()
    console = Console(file=io.StringIO())
    console.print(report.matrix_table(result), report.summary_table([result]))
    for table in report.generalization_tables(result.run_name, result.lengths, result.capacities):
        console.print(table)
    run_note(result)
    groups = load_groups([str(path), str(path)])
    compared = compare(groups)
    to_json(compared)
    console.print(to_table(compared))
    if figures:
        all_figures(groups)


def outcomes(tree, count, seed, folder):
    """Return the places whose change was refused in one line, and the accepted ones, each with what it made."""
    refused, accepted, path = [], [], folder / "results.json"
    for number, (place, changed) in enumerate(mutations(tree, count, seed)):
        path.write_text(json.dumps(changed))
        line = refusal(use, path, figures=number % 20 == 0)
        assert line is None or line.startswith(
            (f"{path} does not contain the results of a run: ", f"{path} contains results of version ")
        )
        if line is None:
            accepted.append((place, changed))
        else:
            refused.append(place)
    return refused, accepted


def test_changed_results(rich_result, tmp_path):
    refused, accepted = outcomes(rich_result, 200, 1, tmp_path)
    assert len(refused) > 50
    typed = {"matrix", "matrices", "quantity"}
    wrong = [place for place, changed in accepted if len(place) == 1 and place[0] in typed & changed.keys()]
    assert not wrong
    # A run without evaluations in training has none.
    assert all(changed.get("anytime", []) == [] for place, changed in accepted if place == ("anytime",))


def test_any_field_may_be_missing(rich_result, tmp_path):
    """One of each kind: of a list, the first item's."""
    places = [way for way in paths(rich_result) if way and all(isinstance(step, str) or step == 0 for step in way)]
    places = [way for way in places if isinstance(way[-1], str) and (way[0] != "config" or len(way) < 3)]
    path, accepted = tmp_path / "results.json", []
    for place in places:
        tree = copy.deepcopy(rich_result)
        *way, last = place
        del functools.reduce(operator.getitem, way, tree)[last]
        path.write_text(json.dumps(tree))
        line = refusal(use, path, figures=False)
        assert line is None or line.startswith(
            (f"{path} does not contain the results of a run: ", f"{path} contains results of version ")
        )
        accepted += [place] if line is None else []
    assert ("dictionary", "plateaus") in accepted
    assert ("matrix",) not in accepted


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_many_more_changed_results(rich_result, tmp_path, seed):
    refused, _ = outcomes(rich_result, 1000, seed, tmp_path)
    assert len(refused) > 250


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"matrix": [[0.5, "x"], [1, 2], [3, 4]]}, "matrix.0.1: Input should be a valid number"),
        ({"matrix": [[0.5, 1.0]]}, "matrix: List should have at least 2 items"),
        ({"matrix": [[0.5], [1.0, 0.5]]}, "matrix must have 2 rows of 1"),
        ({"metrics": {"accuracy": True}}, "metrics.accuracy: Input should be a valid number"),
        ({"artifacts": {"x": "../../x"}}, "artifacts.x: is not a file in the run's folder"),
        ({"artifacts": {"x": "/etc/passwd"}}, "artifacts.x: is not a file in the run's folder"),
        ({"quantity": "luck"}, "quantity: is none of accuracy, bits_per_byte, squared_error"),
        ({"config": {}}, "config.seed: Field required"),
        ({"provenance": []}, "provenance: Input should be a valid dictionary"),
        ({"experiences": [["0"]]}, "experiences has length 1 instead of 2"),
        ({"experiences": [["0"], [1]]}, "experiences.1.0: Input should be a valid string"),
        ({"version": 0}, "version: Input should be greater than or equal to 1"),
        ({"version": "2"}, "version: Input should be a valid integer"),
        ({"diverged": {"step": 1, "experience": 1, "reason": "x", "more": 1}}, "diverged.more: Extra inputs"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
        ({"run_name": 5}, "run_name: Input should be a valid string"),
        ({"matrix": [[float("nan")], [1.0]]}, "Out of range float values are not JSON compliant"),
    ],
)
def test_the_field_is_named(rich_result, tmp_path, change, line):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rich_result | change))
    with pytest.raises(UserError) as error:
        Result.read(path)
    assert str(error.value).startswith(f"{path} does not contain the results of a run: {line}")


def test_the_version_of_a_file(rich_result, tmp_path):
    path, older = tmp_path / "results.json", {name: value for name, value in rich_result.items() if name != "version"}
    assert rich_result["version"] == VERSION
    path.write_text(json.dumps(older))
    found = Result.read(path)
    assert found == Result.of(rich_result | {"output_dir": str(tmp_path)}, path)
    path.write_text(json.dumps(rich_result | {"version": VERSION + 1, "surprise": 5}))
    with pytest.raises(UserError) as error:
        Result.read(path)
    assert str(error.value) == (
        f"{path} contains results of version {VERSION + 1}, but this program reads only versions up to {VERSION}: "
        "read it with the version that wrote it, or a later one"
    )


def test_what_is_recorded_is_what_a_result_has(rich_result):
    """The objects that record a run, and the types of what it leaves."""
    for recorded, kept in (
        (Point, AnytimeRecord),
        (DictionaryRecord, GrowthRecord),
        (Plateau, PlateauRecord),
        (SlotStatistics, SlotRecord),
    ):
        assert {field.name for field in dataclasses.fields(recorded)} == kept.__annotations__.keys()
    assert rich_result["provenance"].keys() | {"evaluated"} == Provenance.__annotations__.keys()
    assert rich_result["dictionary"].keys() | {"memory"} == Dictionaries.__annotations__.keys()


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"{", b"5", b"null", b'{"a": ' * 100 + b"1" + b"}" * 100])
def test_files_that_are_no_results(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(UserError, match="does not contain the results of a run"):
        Result.read(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "results.json")
    with pytest.raises(UserError, match="cannot be read: it is not a regular file"):
        Result.read(tmp_path)


def test_what_is_too_large_is_not_read(tmp_path):
    os.truncate(os.open(tmp_path / "results.json", os.O_CREAT | os.O_WRONLY), 1 << 40)
    with pytest.raises(UserError, match="cannot be read: it has more than 536,870,912 bytes"):
        Result.read(tmp_path)


def test_the_folder_of_results_is_where_they_are(rich_result, tmp_path, call):
    """Not the one that they name: that is where they were, or somebody's private one."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "checkpoint.bin").write_text("private")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "results.json").write_text(json.dumps(rich_result | {"output_dir": str(elsewhere)}))
    assert Result.read(tmp_path / "moved").output_dir == str(tmp_path / "moved")
    code, out, error = call("lengths", "moved", "--at", "16")
    assert (code, out, error.partition(" (")[0]) == (2, "", "error: moved contains no checkpoint")


def test_lengths_that_seeds_do_not_share(rich_result, tmp_path, call):
    record = {"tokens": 8, "quantity": "accuracy", "value": 0.5, "state_bytes": 0, "distances": []}
    for seed in (0, 1):
        (tmp_path / "runs" / str(seed)).mkdir(parents=True)
        changed = {"config": rich_result["config"] | {"seed": seed}, "lengths": [record] * (seed + 1)}
        (tmp_path / "runs" / str(seed) / "results.json").write_text(json.dumps(rich_result | changed))
    assert call("lengths", "runs/0")[0] == 0
    code, _, error = call("lengths", "runs")
    assert (code, len(error.splitlines())) == (2, 1)
    assert "its seeds were evaluated at different lengths" in error


def test_changed_files_of_seeds(rich_result, tmp_path):
    path = tmp_path / "seeds.json"
    seeds = {"metrics": {}, "runs": [rich_result], "diverged": []}
    for _, changed in mutations(seeds, 60, 3):
        path.write_text(json.dumps(changed))
        line = refusal(load_groups, [str(path)])
        assert line is None or line.startswith(f"{path} does not contain the results of ")


def test_changed_records_of_trials(tmp_path):
    record = Record(3, {"optimizer.learning_rate": 0.1}, "done", {"accuracy": 0.5}, 2, [[1, 0.5]], points=[[1, {}]])
    record.write(tmp_path)
    (path,) = tmp_path.rglob("trial.json")
    assert read_records(tmp_path) == {3: record}
    for _, changed in mutations(json.loads(path.read_text()), 60, 4):
        path.write_text(json.dumps(changed))
        line = refusal(read_records, tmp_path)
        assert line is None or line.startswith(f"{path} does not contain the record of a trial: ")
