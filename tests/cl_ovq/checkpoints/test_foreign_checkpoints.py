"""Checkpoints with a right checksum that are wrong: one line, or a run that goes on to its end."""

import hashlib
import io
import json
import os
import shutil
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from mutations import mutations, refusal
from resume_helpers import FAST, Killed, killed_at
from rich.console import Console

from cl_ovq.errors import UserError
from cl_ovq.runs import finish, run
from cl_ovq.runs.checkpoints import NAME, read_checkpoint, write_checkpoint
from cl_ovq.runs.checkpoints.files import MAGIC
from cl_ovq.runs.checkpoints.history import NAME as HISTORY
from cl_ovq.runs.checkpoints.schema import VERSION
from cl_ovq.runs.reevaluate import evaluate_finished
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.setup import load_stream

RICH = ("strategy.name=derpp", *FAST, "evaluation.every_steps=4", "optimizer.name=adamw")
STEPS = 20
TEST_ROW = 3  # a sample to test on


@pytest.fixture(scope="module")
def config(tiny):
    return lambda folder: tiny(*RICH, f"output_dir={folder}", "checkpoint.every_steps=1", "threads=1")


@pytest.fixture(scope="module")
def begun(config, tmp_path_factory):
    """The folder of a run that was killed one step before its end."""
    folder = tmp_path_factory.mktemp("begun")
    with killed_at(STEPS - 1), pytest.raises(Killed):
        run_experiment(config(folder), Console(file=io.StringIO()))
    return folder


@pytest.fixture(scope="module")
def stream(config, tmp_path_factory):
    return load_stream(config(tmp_path_factory.mktemp("none")))


@contextmanager
def at_hand(stream):
    """What has nothing to do with the file is not done again and again."""
    with patch.object(run, "load_stream", lambda config: stream), patch.object(finish, "draw_figures"):
        yield


def resume(config, folder):
    run_experiment(config(folder), Console(file=io.StringIO()), resume=True)


def test_what_is_right_goes_on(config, begun, stream, tmp_path):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    assert read_checkpoint(tmp_path / NAME)["state"]["clock"]["train_iterations"] == STEPS - 1
    write_checkpoint(tmp_path / NAME, read_checkpoint(tmp_path / NAME))
    with at_hand(stream):
        resume(config, tmp_path)


def outcomes(config, begun, stream, folder, count, seed):
    """Return the places whose change was refused in one line, and those whose change was accepted."""
    refused, accepted = [], []
    for number, (place, changed) in enumerate(mutations(read_checkpoint(begun / NAME), count, seed)):
        here = folder / str(number)
        shutil.copytree(begun, here)
        try:
            write_checkpoint(here / NAME, changed)
        except (TypeError, UnicodeEncodeError):  # nothing that a file can hold
            continue
        with at_hand(stream):
            line = refusal(resume, config, here)
        assert line is None or str(here) in line, line
        (accepted if line is None else refused).append(place)
    return refused, accepted


def test_changed_checkpoints(config, begun, stream, tmp_path):
    refused, accepted = outcomes(config, begun, stream, tmp_path, 90, 1)
    assert len(refused) + len(accepted) > 70
    assert len(refused) > 40


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_many_more_changed_checkpoints(config, begun, stream, tmp_path, seed):
    outcomes(config, begun, stream, tmp_path, 300, seed)


def memory(run):
    """Return what a checkpoint holds of the memory of past samples."""
    return run["state"]["strategy"]["object"]["memory"]["object"]


def policy(run):
    return memory(run)["storage_policy"]["policy"]


def group(run):
    """Return what it holds of the samples of one class."""
    return next(iter(policy(run)["buffer_groups"].values()))["policy"]


def put(*path, value):
    """Return what sets the part at a place."""

    def change(run):
        *way, last = path
        for key in way:
            run = run[key]
        run[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda run: run["state"]["optimizer"]["state"][0].pop("exp_avg_sq"),
            "does not fit this run: the optimizer's state of parameter 0: exp_avg_sq is missing",
        ),
        (
            lambda run: run["state"]["optimizer"]["param_groups"][0].update(lr=1e300),
            "does not fit this run: lr of the optimizer is 1e+300",
        ),
        (
            lambda run: run["state"]["optimizer"]["param_groups"][0].update(betas=(1.0, 1.0)),
            "does not fit this run: betas of the optimizer is (1.0, 1.0)",
        ),
        (
            lambda run: run["state"]["optimizer"]["state"][0]["step"].fill_(-1),
            "does not fit this run: step of the optimizer is wrong for parameter 0",
        ),
        *(
            (put("done", value=value), line)
            for value, line in (
                (99, "does not fit this run: 99 of 2 experiences are done"),
                (2, "does not fit this run: 2 of 2 experiences are done"),
                (0, "does not fit this run: its clock shows a different position in training"),
                (-1, "is not the checkpoint of a run: done: Input should be greater than or equal to 0"),
                (True, "is not the checkpoint of a run: done: Input should be a valid integer"),
                (1.0, "is not the checkpoint of a run: done: Input should be a valid integer"),
                ("1", "is not the checkpoint of a run: done: Input should be a valid integer"),
            )
        ),
        (put("version", value=VERSION + 1), "was written by another version of this program"),
        (
            put("about", "config", value=[]),
            "is not the checkpoint of a run: about.config: Input should be a valid dict",
        ),
        (put("about", "train_seconds", value=float("nan")), "is not the checkpoint of a run: about.train_seconds: "),
        (put("state", "plan", value=10**6), "does not fit this run: its batch order lacks the remaining batches"),
        (
            put("state", "clock", "train_exp_epochs", value=2),
            "does not fit this run: its clock shows a different position in training",
        ),
        (
            put("state", "random", "numpy", 2, value=10**6),
            "is not the checkpoint of a run: state.random: invalid state of NumPy's",
        ),
        (put("state", "random", "torch", value=torch.zeros(3)), "does not fit this run: "),
        (put("history", "size", value=10**12), "the history "),
        *(
            (change, f"does not fit this run: DarkExperienceReplay.memory{line}")
            for change, line in (
                (
                    lambda run: policy(run)["buffer_groups"].popitem(),
                    ".storage_policy.buffer_groups do not share the room",
                ),
                (
                    lambda run: policy(run)["seen_classes"]["set"].pop(),
                    ".storage_policy.seen_classes has other labels than groups",
                ),
                (
                    lambda run: policy(run).update(max_size=10**12),
                    ".storage_policy.buffer_groups do not share the room",
                ),
                (lambda run: policy(run).update(total_num_classes="x"), ".storage_policy.total_num_classes is 'x'"),
                (lambda run: group(run).update(max_size=0), ".storage_policy.buffer_groups."),
                (
                    lambda run: group(run)["_buffer"].fill_(TEST_ROW),
                    ".storage_policy.buffer_groups.",
                ),
                (lambda run: memory(run)["rows"].fill_(TEST_ROW), " has other samples than its policy keeps"),
                (lambda run: memory(run)["rows"].copy_(memory(run)["rows"].flip(0)), " has other samples than its"),
            )
        ),
    ],
)
def test_the_field_is_named(config, begun, stream, tmp_path, change, line):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    run = read_checkpoint(tmp_path / NAME)
    change(run)
    write_checkpoint(tmp_path / NAME, run)
    with at_hand(stream), pytest.raises(UserError) as error:
        resume(config, tmp_path)
    wanted = line if line.startswith("the history") else f"{tmp_path / NAME} {line}"
    assert str(error.value).startswith(wanted)


def signed(header, data=b""):
    body = (header if isinstance(header, bytes) else json.dumps(header).encode()) + b"\n" + data
    return MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def of(dtype, *shape):
    return {"tree": {"tensor": 0}, "tensors": [{"type": dtype, "shape": list(shape)}]}


@pytest.mark.parametrize(
    "content",
    [
        signed(of("float32", 10**6, 10**6)),
        signed(of("float32", 2**40, 2**40)),
        signed(of("float32", 2), bytes(4)),
        signed(of("float32", 1), bytes(8)),
        signed(of("float32", -1), bytes(4)),
        signed(of("float32", 1.0), bytes(4)),
        signed(of("float32", True), bytes(4)),
        signed(of("complex64", 1), bytes(8)),
        signed(of("nn", 1), bytes(8)),
        signed(of("qint8", 1), bytes(1)),
        signed(of(None, 1), bytes(8)),
        signed({"tree": {"tensor": 1}, "tensors": []}),
        signed({"tree": {"tensor": -1}, "tensors": of("uint8", 1)["tensors"]}, bytes(1)),
        signed({"tree": {"tensor": True}, "tensors": of("uint8", 1)["tensors"]}, bytes(1)),
        signed({"tree": {"dict": [[{"dict": []}, 1]]}, "tensors": []}),
        signed({"tree": {"dict": [[1, 2, 3]]}, "tensors": []}),
        signed({"tree": {"dict": 5}, "tensors": []}),
        signed({"tree": {"tuple": {}}, "tensors": []}),
        signed({"tree": {"tuple": [], "dict": []}, "tensors": []}),
        signed({"tree": {"other": []}, "tensors": []}),
        signed({"tree": {}, "tensors": []}),
        signed({"tree": 1}),
        signed({"tree": 1, "tensors": [], "more": 1}),
        signed({"tree": 1, "tensors": {}}),
        signed([1, 2]),
        signed(b"null"),
        signed(b"{"),
        signed(b"\xff\xfe"),
        signed(b"[" * 200_000),
        signed(b'{"tree": ' + b"9" * 5000 + b', "tensors": []}'),
    ],
)
def test_files_that_are_not_well_formed(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(UserError, match=r"^the checkpoint .* is not well formed: [^\n]*$"):
        read_checkpoint(tmp_path / NAME)


def test_a_deep_tree_is_refused(tmp_path):
    deep = b'{"tuple":[' * 1500 + b"1" + b"]}" * 1500
    (tmp_path / NAME).write_bytes(signed(b'{"tree":' + deep + b',"tensors":[]}'))
    line = refusal(read_checkpoint, tmp_path / NAME)
    assert line is None or "is not well formed" in line


@pytest.mark.parametrize("name", [NAME, HISTORY])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_not_read(config, begun, stream, tmp_path, name, make):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    make(tmp_path / name)
    with at_hand(stream), pytest.raises(UserError, match="cannot be read: "):
        resume(config, tmp_path)


def test_changed_rows_of_the_history(config, begun, stream, tmp_path):
    lines = [json.loads(line) for line in (begun / HISTORY).read_text().splitlines()]
    refused = 0
    for number, (_, changed) in enumerate(mutations(lines, 40, 5)):
        if not isinstance(changed, list):
            continue
        here = tmp_path / str(number)
        shutil.copytree(begun, here)
        text = "".join(json.dumps(line) + "\n" for line in changed).encode()
        (here / HISTORY).write_bytes(text)
        run = read_checkpoint(here / NAME)
        run["history"] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        write_checkpoint(here / NAME, run)
        with at_hand(stream):
            line = refusal(resume, config, here)
        assert line is None or str(here) in line
        refused += line is not None
    assert refused > 10


def test_a_model_that_is_none_is_not_evaluated(begun, tmp_path):
    run = read_checkpoint(begun / NAME)
    for name, value in (("classifier.weight", torch.zeros(3)), ("unknown", torch.zeros(1)), (5, torch.zeros(1))):
        run["state"]["model"] = {**read_checkpoint(begun / NAME)["state"]["model"], name: value}
        write_checkpoint(tmp_path / NAME, run)
        line = refusal(evaluate_finished, str(tmp_path))
        assert line is not None
        assert line.startswith(f"{tmp_path / NAME} ")
