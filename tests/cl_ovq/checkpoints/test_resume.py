"""A run that is killed and goes on is, bit for bit, the run that was never disturbed."""

import io
import json
import os
import shutil
from unittest.mock import patch

import pytest
from forked import ForkedCommand
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quick_settings import ANYWHERE, QUICK, quick
from resume_helpers import FAST, MEMORY, PARTS, Killed, assert_same, final, killed_at, killed_by_sigkill
from rich.console import Console

from cl_ovq.errors import UserError
from cl_ovq.runs.callbacks import Callback
from cl_ovq.runs.checkpoints import NAME
from cl_ovq.runs.checkpoints.plugin import Checkpoints
from cl_ovq.runs.run import run_experiment

every_strategy = pytest.mark.parametrize(
    "overrides",
    [quick(name, "model.dropout=0.1") for name in ANYWHERE] + [(*MEMORY, *QUICK)],
    ids=[*ANYWHERE, "memory_head"],
)


@every_strategy
@settings(max_examples=1, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_killed_anywhere(tiny, tmp_path_factory, undisturbed, overrides, data):
    _kill_and_go_on(tiny, tmp_path_factory, undisturbed, overrides, data)


@pytest.mark.slow
@every_strategy
@settings(max_examples=8, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_killed_at_many_moments(tiny, tmp_path_factory, undisturbed, overrides, data):
    _kill_and_go_on(tiny, tmp_path_factory, undisturbed, overrides, data)


def _kill_and_go_on(tiny, tmp_path_factory, undisturbed, overrides, data):
    whole, expected = undisturbed(*overrides)
    steps = whole.provenance["train_steps"]
    every = data.draw(st.sampled_from([None, 1, 3]))
    kills = data.draw(st.lists(st.integers(1, steps), min_size=1, max_size=2, unique=True).map(sorted))
    folder = tmp_path_factory.mktemp("killed")
    config = tiny(*overrides, f"output_dir={folder}", *([f"checkpoint.every_steps={every}"] if every else []))
    for kill in kills:
        with killed_at(kill), pytest.raises(Killed):
            run_experiment(config, Console(file=io.StringIO()), resume=True)
        assert not (folder / "results.json").exists()
    result = run_experiment(config, Console(file=io.StringIO()), resume=True)
    assert_same(result, whole, folder, expected)


def test_an_encoder_that_was_frozen_is_frozen_when_the_run_goes_on(tiny, tmp_path, undisturbed):
    overrides = ("model.train_encoder=first_experience", "strategy.batch_size=150", "model.dropout=0.5")
    whole, expected = undisturbed(*overrides)
    config = tiny(*overrides, f"output_dir={tmp_path}")
    with killed_at(whole.provenance["train_steps"]), pytest.raises(Killed):
        run_experiment(config, Console(file=io.StringIO()), resume=True)
    run_experiment(config, Console(file=io.StringIO()), resume=True)
    assert final(tmp_path) == expected


def test_a_process_killed_by_sigkill_goes_on(tiny_path, tmp_path, undisturbed):
    overrides = ("strategy.name=derpp", *FAST)
    whole, expected = undisturbed(*overrides)
    folder, arguments = killed_by_sigkill(tmp_path, tiny_path, *overrides, "checkpoint.every_steps=2", "--json")
    done = ForkedCommand("run", *arguments, "--resume").wait()
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert "resumed after" in done.stderr
    for part in PARTS:
        assert result[part] == json.loads(whole.to_json())[part]
    assert final(folder) == expected
    again = ForkedCommand("run", *arguments, "--resume").wait()
    assert "is already finished" in again.stderr
    assert json.loads(again.stdout) == result
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_without_a_checkpoint_a_run_starts_from_the_beginning(tiny, tmp_path, undisturbed):
    console = Console(file=io.StringIO(), width=500)
    overrides = ("strategy.name=naive", *FAST)
    result = run_experiment(tiny(*overrides, f"output_dir={tmp_path / 'new'}"), console, resume=True)
    assert "no checkpoint in" in console.file.getvalue()
    assert result.matrix == undisturbed(*overrides)[0].matrix


@pytest.fixture(scope="module")
def begun(tiny, tmp_path_factory):
    """The folder of a run that was killed."""
    folder = tmp_path_factory.mktemp("begun")
    config = tiny("strategy.name=replay", *FAST, f"output_dir={folder}")
    with killed_at(15), pytest.raises(Killed):
        run_experiment(config, Console(file=io.StringIO()))
    return folder


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_truncated_checkpoint_is_refused(tiny, tmp_path, begun, quiet, cut):
    (tmp_path / NAME).write_bytes((begun / NAME).read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"checkpoint .* is truncated or damaged"):
        run_experiment(tiny("strategy.name=replay", *FAST, f"output_dir={tmp_path}"), quiet, resume=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a file of PyTorch's"])
def test_a_foreign_file_is_refused(tiny, tmp_path, quiet, content):
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(UserError, match="is not a checkpoint of this program"):
        run_experiment(tiny(*FAST, f"output_dir={tmp_path}"), quiet, resume=True)


def test_another_configuration_is_refused(tiny, tmp_path, begun, quiet):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    for change, line in (
        ("strategy.epochs=3", "strategy.epochs is 2 in the checkpoint, but 3 now"),
        ("seed=4", "seed is 0 in the checkpoint, but 4 now"),
    ):
        config = tiny("strategy.name=replay", *FAST, f"output_dir={tmp_path}", change)
        with pytest.raises(UserError, match=line):
            run_experiment(config, quiet, resume=True)
    with pytest.raises(UserError, match="--resume needs output_dir=DIR"):
        run_experiment(tiny(*FAST), quiet, resume=True)
    moved = tiny("strategy.name=replay", *FAST, f"output_dir={tmp_path}", "threads=1", "checkpoint.every_steps=7")
    assert run_experiment(moved, quiet, resume=True).matrix  # what decides nothing may differ


@pytest.mark.parametrize(("saved", "line"), [(True, "to continue, add --resume"), (False, "nothing to resume")])
def test_who_interrupts_is_told_how_to_go_on(tiny, tmp_path, saved, line):
    class Interrupt(Callback):
        def experience_end(self, run, row):
            raise KeyboardInterrupt

    said = io.StringIO()
    config = tiny(*FAST, f"checkpoint.enabled={saved}", f"output_dir={tmp_path}")
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, Console(file=said, width=1000), callbacks=[Interrupt()])
    assert line in said.getvalue().splitlines()[-1]


def test_mlflow_has_one_run_and_no_point_twice(tiny, tmp_path, store):
    from mlflow import MlflowClient

    tracked = ("tracking.enabled=true", f"tracking.uri={store}", "tracking.experiment=resumed")
    config = tiny("strategy.name=replay", *FAST, *tracked, "checkpoint.every_steps=2", f"output_dir={tmp_path}")
    with killed_at(13), pytest.raises(Killed):
        run_experiment(config, Console(file=io.StringIO()))
    result = run_experiment(config, Console(file=io.StringIO()), resume=True)
    client = MlflowClient(tracking_uri=store)
    found = client.search_runs([client.get_experiment_by_name("resumed").experiment_id])
    assert [run.info.run_id for run in found] == [result.run_id]
    assert found[0].info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(result.run_id, "loss/train")]
    assert steps == list(range(1, result.provenance["train_steps"] + 1))
    for name in found[0].data.metrics:
        history = [point.step for point in client.get_metric_history(result.run_id, name)]
        assert len(set(history)) == len(history), name


def test_seeds_go_on(tiny, tmp_path):
    from cl_ovq.runs.seeds import run_seeds

    overrides = ("strategy.name=naive", *FAST, "seeds=2")
    whole = run_seeds(tiny(*overrides, f"output_dir={tmp_path / 'whole'}"), Console(file=io.StringIO()))
    config = tiny(*overrides, f"output_dir={tmp_path / 'killed'}")
    own, calls = Checkpoints.save, []

    def save(self, *, within):
        own(self, within=within)
        calls.append(within)
        if len(calls) == 3:  # in the second seed
            raise Killed

    with patch.object(Checkpoints, "save", save), pytest.raises(Killed):
        run_seeds(config, Console(file=io.StringIO()))
    again = run_seeds(config, Console(file=io.StringIO()), resume=True)
    assert [run.matrix for run in again.runs] == [run.matrix for run in whole.runs]
    with pytest.raises(UserError, match="--resume needs output_dir=DIR"):
        run_seeds(tiny(*overrides), Console(file=io.StringIO()), resume=True)
