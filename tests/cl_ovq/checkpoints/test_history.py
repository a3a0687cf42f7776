"""The history of a run is appended to, and a checkpoint finds its own part of it again, whatever came after."""

import io
import json
import os
import re
import shutil
from dataclasses import dataclass
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from resume_helpers import FAST, PARTS, Killed, final, killed_at
from rich.console import Console

from cl_ovq.errors import UserError
from cl_ovq.runs.checkpoints import NAME, plugin, read_checkpoint, write_checkpoint
from cl_ovq.runs.checkpoints.history import NAME as HISTORY
from cl_ovq.runs.checkpoints.history import History
from cl_ovq.runs.checkpoints.plugin import Checkpoints
from cl_ovq.runs.reevaluate import evaluate_finished
from cl_ovq.runs.run import run_experiment

DENSE = (*FAST, "evaluation.every_steps=2", "evaluation.dictionary_every=1", "checkpoint.every_steps=1")


@dataclass
class Record:
    step: int
    value: float


@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.lists(st.floats(-1, 1), max_size=3)), max_size=12)
)
def test_every_mark_finds_the_rows_of_its_moment(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("history")
    history, series = History(folder), {"a": [], "b": []}
    marks, written = [], []
    for name, cut, values in changes:
        del series[name][max(0, len(series[name]) - cut) :]
        series[name] += [Record(step, value) for step, value in enumerate(values)]
        marks.append(history.append(series))
        written.append({key: [vars(row) for row in rows] for key, rows in series.items() if rows})
        assert (folder / HISTORY).stat().st_size == history.size if history.size else not (folder / HISTORY).exists()
    for mark, expected in zip(marks, written, strict=True):
        found = History.read(folder, **mark).rows
        assert {key: rows for key, rows in found.items() if rows} == expected


def test_what_comes_after_the_mark_is_overwritten(tmp_path):
    first = History(tmp_path)
    rows = [Record(1, 0.5)]
    mark = first.append({"a": rows})
    first.append({"a": [*rows, Record(2, 0.25)]})
    with (tmp_path / HISTORY).open("ab") as file:
        file.write(b'["a",2,{"st')  # cut short by a kill
    again = History.read(tmp_path, **mark)
    assert again.rows == {"a": [{"step": 1, "value": 0.5}]}
    again.hold({"a": rows})
    mark = again.append({"a": [*rows, Record(3, 0.125)]})
    lines = [json.loads(line) for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert lines == [["a", 0, {"step": 1, "value": 0.5}], ["a", 1, {"step": 3, "value": 0.125}]]
    assert History.read(tmp_path, **mark).rows["a"][1]["step"] == 3


def written_per_step(config):
    """Run; return for every training step the bytes that were written for its checkpoint."""
    own, written, before = Checkpoints.save, [], [0]

    def save(self, *, within):
        own(self, within=within)
        now = (self.folder / HISTORY).stat().st_size
        if within:
            written.append((self.folder / NAME).stat().st_size + now - before[0])
        before[0] = now

    with patch.object(Checkpoints, "save", save):
        run_experiment(config, Console(file=io.StringIO()))
    return written


def test_what_a_checkpoint_writes_does_not_grow_with_the_steps_done(tiny, tmp_path):
    epochs = 8
    config = tiny("strategy.name=naive", *DENSE, f"strategy.epochs={epochs}", f"output_dir={tmp_path}")
    written = written_per_step(config)
    experience = written[: len(written) // 2]
    steps = len(experience) // epochs
    assert steps > 2
    by_epoch = [sum(experience[start : start + steps]) for start in range(0, len(experience), steps)]
    # An epoch writes its plan, its rows and its states once. Only numbers get digits.
    assert max(by_epoch[1:]) < 1.01 * min(by_epoch[1:])


@pytest.mark.parametrize("saves", [1, 4, 7, 8])
@pytest.mark.parametrize("torn", [False, True])
def test_killed_between_the_two_writes(tiny, tmp_path, undisturbed, saves, torn):
    overrides = ("strategy.name=naive", *DENSE)
    whole, expected = undisturbed(*overrides)
    config, calls = tiny(*overrides, f"output_dir={tmp_path}"), []

    def write(path, tree):
        calls.append(path)
        if len(calls) > saves:
            raise Killed
        write_checkpoint(path, tree)

    with patch.object(plugin, "write_checkpoint", write), pytest.raises(Killed):
        run_experiment(config, Console(file=io.StringIO()))
    if torn:
        os.truncate(tmp_path / HISTORY, (tmp_path / HISTORY).stat().st_size - 3)
    result = run_experiment(config, Console(file=io.StringIO()), resume=True)
    for part in PARTS:
        assert getattr(result, part) == getattr(whole, part), part
    assert final(tmp_path) == expected


@pytest.fixture(scope="module")
def begun(tiny, tmp_path_factory):
    """The folder of a run that was killed."""
    folder = tmp_path_factory.mktemp("begun")
    with killed_at(3), pytest.raises(Killed):
        run_experiment(tiny("strategy.name=naive", *DENSE, f"output_dir={folder}"), Console(file=io.StringIO()))
    return folder


def shorter(path):
    os.truncate(path, path.stat().st_size - 1)


def altered(path):
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (shorter, "the history .* is truncated or damaged: it does not match its checkpoint"),
        (altered, "the history .* is truncated or damaged: it does not match its checkpoint"),
        (os.unlink, "the history .* cannot be read: No such file or directory"),
        (pipe, "the history .* cannot be read: it is not a regular file"),
    ],
)
def test_a_damaged_history_is_refused(tiny, tmp_path, begun, damage, line):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / HISTORY)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UserError) as error:
        run_experiment(
            tiny("strategy.name=naive", *DENSE, f"output_dir={tmp_path}"), Console(file=io.StringIO()), resume=True
        )
    assert re.fullmatch(line, str(error.value))
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_checkpoint_of_an_older_version(tiny, tmp_path, begun):
    """Its history was within it: the run cannot go on, but its model can be evaluated."""
    run = read_checkpoint(begun / NAME)
    del run["version"], run["history"]
    write_checkpoint(tmp_path / NAME, run)
    config = tiny("strategy.name=naive", *DENSE, f"output_dir={tmp_path}")
    with pytest.raises(UserError, match="was written by another version of this program; only its model"):
        run_experiment(config, Console(file=io.StringIO()), resume=True)
    assert evaluate_finished(str(tmp_path)).metrics["accuracy"] is not None
